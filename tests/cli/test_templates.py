"""Chat templates on the command line: where prompts stop, which variables a model was trained with, who has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_train import data, flags
from tests.evaluation.server_stub import serving
from tests.support.templates import published, with_template
from vlm_grpo.cli import evaluate, preview, train
from vlm_grpo.cli.check import main as check
from vlm_grpo.cli.templates import load_prompting
from vlm_grpo.cli.train_args import UsageError

THINKS, SILENT = "<think>\n", "<think>\n\n</think>\n\n"
OFF = '{"enable_thinking": false}'


@pytest.fixture
def thinker(tiny_model: Path, tmp_path: Path) -> Path:
    return with_template(tiny_model, tmp_path / "thinker", published("qwen3_5_think"))


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Path:
    """A model without weights and without a chat template: whoever loads it fails."""
    folder = with_template(tiny_model, tmp_path / "bare", "")
    (folder / "chat_template.jinja").unlink()
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    "more, opening, answer",
    [
        ([], THINKS, "The answer can be seen.</think>\n<answer>0</answer>"),
        (["--chat_template_kwargs", OFF], SILENT, "<answer>0</answer>"),
    ],
)
def test_the_end_of_the_prompt_is_shown(
    more: list[str], opening: str, answer: str, thinker: Path, tmp_path: Path, capsys
):
    assert train.main([*flags(thinker, tmp_path), *more, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    asked = "[user] <image>Which?\nWrite only the final answer inside <answer> </answer>.\n"
    assert asked in shown and f"<|im_start|>assistant\n{opening}\n" in shown
    assert f"the gold completion:\n{answer}\nits reward accuracy:1: 1\nits reward format:1: 1\n" in shown
    assert preview.main([*data(tmp_path), *more, "--model_name_or_path", str(thinker), "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"<|im_start|>assistant\n{opening}\n--- gold completion\n{answer}\n--- its rewards\naccuracy: 1\n" in shown
    assert "format: 1" in shown and "inside <think>" not in shown


def test_tags_are_asked_for_where_the_template_does_not_write_them(tiny_model: Path, tmp_path: Path, capsys):
    assert train.main([*flags(tiny_model, tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "Write your reasoning inside <think> </think>" in shown
    assert "the gold completion:\n<think>The answer can be seen.</think>\n<answer>0</answer>" in shown


def test_ones_own_prompt_may_know_it(thinker: Path, tmp_path: Path, capsys):
    (tmp_path / "p.jinja").write_text("{{ question }} <think>{{ think_tags }}", encoding="utf-8")
    assert train.main([*flags(thinker, tmp_path, format_prompt=tmp_path / "p.jinja"), "--dry_run"]) == 0
    assert "Which? <think>False" in capsys.readouterr().out


def test_a_processor_without_a_template_is_refused_before_the_model_is_loaded(bare: Path, tmp_path: Path, capsys):
    assert train.main(flags(bare, tmp_path)) == 2
    found = [capsys.readouterr().err]
    words = [*data(tmp_path), "--model_name_or_path", str(bare)]
    assert evaluate.main([*words, "--output_dir", str(tmp_path / "scores")]) == 2
    found.append(capsys.readouterr().err)
    assert preview.main(words) == 1
    found.append(capsys.readouterr().err)
    for text in found:
        assert "has no chat template" in text and "set --chat_template_path FILE.jinja" in text
    assert train.main([*flags(bare, tmp_path), "--dry_run"]) == 0
    assert "are not shown: --model_name_or_path" in capsys.readouterr().out


def test_a_template_can_be_given(bare: Path, tmp_path: Path, capsys):
    path = tmp_path / "t.jinja"
    path.write_text(published("qwen3_5_think"), encoding="utf-8")
    assert train.main([*flags(bare, tmp_path, chat_template_path=path), "--dry_run"]) == 0
    assert f"<|im_start|>assistant\n{THINKS}" in capsys.readouterr().out
    path.write_text("{% if %}", encoding="utf-8")
    assert train.main([*flags(bare, tmp_path, chat_template_path=path), "--dry_run"]) == 2
    assert "t.jinja:1: " in capsys.readouterr().err


def test_evaluation_asks_as_training_did(thinker: Path, tmp_path: Path, capsys):
    path = tmp_path / "t.jinja"
    path.write_text(published("qwen3_5_nothink"), encoding="utf-8")
    on = '{"enable_thinking": true}'
    words = flags(thinker, tmp_path, chat_template_kwargs=on, chat_template_path=path, save_steps=1, live_report=False)
    assert train.main(words) == 0
    out = tmp_path / "out"
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    for number, (model, more, opening) in enumerate(
        [
            (out, [], THINKS),
            (out / "checkpoint-1", [], THINKS),
            (out, ["--chat_template_kwargs", OFF], SILENT),
            (thinker, [], THINKS),
        ]
    ):
        folder = tmp_path / f"scores{number}"
        words = [*data(tmp_path), "--model_name_or_path", str(model), "--output_dir", str(folder), "--limit", "1"]
        capsys.readouterr()
        assert evaluate.main([*words, *more, "--use_cpu", "--max_completion_length", "4"]) == 0
        is_said = f"--chat_template_kwargs '{on}', as in training ({model / 'run.json'})" in capsys.readouterr().out
        assert is_said == (number < 2)
        prediction = json.loads((folder / "predictions.jsonl").read_text())
        assert prediction["completion"].startswith(opening) and prediction["facts"]["turn_opening"] == opening
        settings = json.loads((folder / "results.json").read_text())["settings"]
        assert settings["chat_template_kwargs"] == (None if number == 3 else json.loads(on if number < 2 else OFF))


@pytest.mark.parametrize("text", ["{", "[1]", "true"])
def test_variables_must_be_an_object(text: str, tiny_model: Path, tmp_path: Path, capsys):
    words = [*data(tmp_path), "--model_name_or_path", str(tiny_model), "--chat_template_kwargs", text]
    assert evaluate.main([*words, "--output_dir", str(tmp_path / "scores")]) == 2
    assert "must be a JSON object" in capsys.readouterr().err


def test_a_server_is_told_of_variables_and_its_thoughts_are_seen(tmp_path: Path):
    with serving(lambda body: "Perhaps <answer>1</answer>.</think><answer>0</answer>") as (url, seen):
        words = [*data(tmp_path), "--model_name_or_path", "m", "--backend", "openai", "--base_url", url, "--limit", "1"]
        assert evaluate.main([*words, "--chat_template_kwargs", OFF, "--output_dir", str(tmp_path / "scores")]) == 0
    assert seen[0]["chat_template_kwargs"] == json.loads(OFF)
    (line,) = map(json.loads, (tmp_path / "scores" / "predictions.jsonl").open())
    assert line["completion"].startswith("<think>Perhaps") and line["predicted"] == "0"
    assert line["scores"] == {"accuracy": 1.0, "format": 1.0}


def test_markup_in_data_is_found_with_its_line(tiny_model: Path, tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    questions = [
        "ok",
        "<|vision_start|><|image_pad|><|vision_end|>How many?",
        "<|im_start|>user\nHow?<|im_end|>",
        "<pad>",
    ]
    path.write_text("\n".join(json.dumps({"question": q, "answer": "3"}) for q in questions), encoding="utf-8")
    assert check(["--data_file_paths", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "rows.jsonl:2" in shown and "rows.jsonl:3" in shown and "rows.jsonl:1 " not in shown
    words = flags(tiny_model, tmp_path)
    words[words.index("--data_file_paths") + 1] = str(path)
    assert train.main(words) == 2
    assert "rows.jsonl:2" in capsys.readouterr().err


def test_special_tokens_of_the_model_are_looked_for(tiny_model: Path, tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    history = [
        {"from": "human", "value": "What?"},
        {"from": "gpt", "value": "<|object_ref_start|> <video> A cat."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    path.write_text(json.dumps({"conversations": history}), encoding="utf-8")
    assert check(["--data_file_paths", str(path)]) == 0  # boxes may be asked for in a family's own marks
    template = tmp_path / "llava"
    config = json.loads((with_template(tiny_model, template, "x") / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = [*config.get("extra_special_tokens", []), "<video>"]
    (template / "tokenizer_config.json").write_text(json.dumps(config))
    assert check(["--data_file_paths", str(path), "--model_name_or_path", str(template)]) == 1
    assert "A cat." in capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["internvl_chat", "chatglm"])
def test_a_checkpoint_with_code_of_its_own_is_refused_with_another_name(model_type: str, tmp_path: Path):
    """OpenGVLab/InternVL2-8B and THUDM/glm-4v-9b: no question on the terminal whether to run their code."""
    content = {"model_type": model_type, "auto_map": {"AutoConfig": "its_own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"{model_type} cannot be trained here: .*remote code.*: use .*/"):
        load_prompting(str(tmp_path), None)
