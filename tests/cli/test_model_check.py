"""What is said or refused of a model before it is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.training import picture
from vlm_grpo.cli.model_check import LANGUAGE_ONLY, check_model
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.unsupported_models import UNSUPPORTED_MODELS

ROWS = [{"images": [picture(0)]}]


def check(folder: Path, task: str = "default", rows: Any = ROWS, **options: Any) -> None:
    model = SimpleNamespace(model_name_or_path=str(folder), model_revision=None)
    names = ("trust_remote_code", "answer_space", "max_image_tokens", "min_pixels", "max_pixels")
    check_model(model, SimpleNamespace(**{**dict.fromkeys(names), **options}), task, rows)


def write_config(folder: Path, **content: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("model_type", UNSUPPORTED_MODELS)
def test_models_that_cannot_be_trained_are_refused_by_their_type(model_type: str, tmp_path: Path):
    """Before anything else is read: none of these folders has weights or a processor."""
    folder = write_config(tmp_path, model_type=model_type, auto_map={"AutoConfig": "its_own.Config"})
    with pytest.raises(UsageError) as error:
        check(folder, trust_remote_code=True)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--model_name_or_path {folder}: {model_type} cannot be trained here: ")
    assert line.endswith(UNSUPPORTED_MODELS[model_type]) and ("use " in line or "save the thinker alone" in line)


def test_code_of_a_checkpoints_own_is_not_run_unasked(tmp_path: Path):
    with pytest.raises(UsageError, match=r"'brand_new_vl' needs remote code .* look for a converted"):
        check(write_config(tmp_path, model_type="brand_new_vl", auto_map={"AutoConfig": "its_own.Config"}))


def test_a_type_that_is_too_new_is_told_so(tmp_path: Path):
    with pytest.raises(UsageError, match=r"'brand_new_vl' is unknown to this version of transformers"):
        check(write_config(tmp_path, model_type="brand_new_vl"))


def test_boxes_without_a_known_space_are_told_of_in_a_line(folder_of: Any, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check(folder_of("mistral3"), "default")
        check(folder_of("mistral3"), "rec", answer_space="unit")
        check(folder_of("qwen3_5_think"), "rec")
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        check(folder_of("mistral3"), "rec")
    assert caplog.messages == [
        "boxes are read as pixels of the original image: no coordinate space is published for mistral3; "
        "set another one with --answer_space thousand|resized|original|unit"
    ]


def test_resized_needs_a_family_that_tells_the_size(folder_of: Any):
    check(folder_of("qwen3_vl"), "rec", answer_space="resized")
    with pytest.raises(UsageError, match=r"--answer_space resized: CLIPImageProcessor\w* has no known resize rule"):
        check(folder_of("llava_clip"), "rec", answer_space="resized")


def test_a_limit_that_cannot_be_kept_stops_before_the_model(folder_of: Any):
    with pytest.raises(UsageError, match=r"--max_image_tokens 3 is too low for Gemma3ImageProcessor"):
        check(folder_of("gemma3"), max_image_tokens=3)


def test_expensive_first_rows_are_told_of(folder_of: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any):
    monkeypatch.setattr("vlm_grpo.cli.model_check.MANY_TOKENS", 10)
    with caplog.at_level(logging.WARNING):
        check(folder_of("qwen2_vl"), rows=[{"images": [picture(0, 800, 600)]}])
    (line,) = caplog.messages
    assert line.startswith("an image of 800 x 600 pixels in the first rows has 12 tokens")


def test_rows_without_an_image_are_refused_where_the_family_needs_one(folder_of: Any):
    rows = [*ROWS, {"images": None, "where": "rows.jsonl:2"}, *ROWS, {"images": [], "where": "rows.jsonl:4"}]
    with pytest.raises(UsageError, match=r"in every prompt, but 2 rows have none \(rows.jsonl:2, rows.jsonl:4\)"):
        check(folder_of("paligemma"), rows=rows)
    check(folder_of("paligemma"))
    check(folder_of("smolvlm"), rows=rows)


@pytest.mark.parametrize("base", ["org/base", None])
def test_an_adapter_is_no_model(base: str | None, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UsageError, match=f"an adapter of {base or 'the base model'}, not a model.*merge it first"):
        check(tmp_path)


def test_images_need_a_model_that_sees(tiny_model: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    write_config(tmp_path, model_type="qwen2")
    check(tmp_path, rows=[{"images": []}, {}])
    with pytest.raises(UsageError, match=r"\(qwen2\) is a text-only model, but there are images in a.jsonl:2"):
        check(tmp_path, rows=[{"images": []}, {**ROWS[0], "where": "a.jsonl:2"}])


@pytest.mark.parametrize("flag", LANGUAGE_ONLY)
def test_what_trl_does_for_language_models_alone_is_refused(flag: str, folder_of: Any):
    with pytest.raises(UsageError, match=rf"^wrong flags:\n  --{flag}: "):
        check(folder_of("smolvlm"), **{flag: True})
