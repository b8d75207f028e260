from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.server_stub import Reply, serving
from vlm_grpo.cli.evaluate import main
from vlm_grpo.data import load_dataset
from vlm_grpo.evaluation import SamplingParams
from vlm_grpo.evaluation.backends.openai import (
    OpenAIBackend,
    ServerError,
    grid_size,
    limited_size,
    needs_space,
    space_of_name,
)
from vlm_grpo.synthetic import DigitFiles


@pytest.fixture
def mixed(mixed_file: Path) -> Any:
    return load_dataset(str(mixed_file), image_folders=str(mixed_file.parent))


def complete(server: OpenAIBackend, rows: Any, numbers: Any) -> dict[int, list[Any]]:
    return {entry.number: entry.completions for batch in server(rows, numbers) for entry in batch}


def image_of(block: dict[str, Any]) -> Image.Image:
    kind, data = block["image_url"]["url"].split(",")
    assert (block["type"], kind) == ("image_url", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_server_sends_the_prompt_of_training_with_images_in_their_places(mixed: Any):
    with serving(lambda body: "red and so on...") as (url, seen):
        server = OpenAIBackend(url, "some-model", max_completion_length=17, answer_space="thousand")
        found = complete(server, mixed, range(6))
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    (completion,) = found[4]
    assert completion[:3] == ("red and so on...", 4, True)
    assert completion.facts["image_sizes"] == [(168, 56)]
    assert completion.facts["answer_space"] == "thousand"
    assert {(body["path"], body["model"], body["max_tokens"]) for body in seen} == {
        ("/v1/chat/completions", "some-model", 17)
    }
    assert all(body["temperature"] == 0 and "seed" not in body for body in seen)
    by_text = {text_of(body): body for body in seen}
    for row in mixed:
        wanted = row["prompt"][-1]["content"]
        body = by_text["".join(block.get("text", "") for block in wanted)]
        content = body["messages"][-1]["content"]
        if not row["images"]:
            assert isinstance(content, str)
            continue
        assert [block["type"] for block in content] == [b["type"].replace("image", "image_url") for b in wanted]
        sizes = [image_of(block).size for block in content if block["type"] == "image_url"]
        assert sizes == [Image.open(ref.source).size for ref in row["images"]]


def text_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def test_server_draws_with_a_seed_for_each_completion(mixed: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    sampling = SamplingParams(temperature=0.7, top_p=0.9, num_samples=3, seed=5)
    with serving(lambda body: str(body["seed"])) as (url, seen):
        found = complete(OpenAIBackend(url, "m", sampling=sampling), mixed, [2])
        again = complete(OpenAIBackend(url, "m", sampling=sampling), mixed, [0, 2])
    assert len({completion.text for completion in found[2]}) == 3
    assert again[2] == found[2]
    assert {(body["temperature"], body["top_p"], body["key"]) for body in seen} == {(0.7, 0.9, "Bearer secret")}


def test_server_keeps_several_requests_in_the_air(mixed: Any):
    running, most, lock = 0, 0, threading.Lock()

    def slow(body: dict[str, Any]) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.15)
        with lock:
            running -= 1
        return "x"

    with serving(slow) as (url, _):
        complete(OpenAIBackend(url, "m", concurrency=3), mixed, range(6))
    assert most == 3


def test_server_repeats_what_failed(mixed: Any):
    failures = iter([503, 429])

    def answer(body: dict[str, Any]) -> str:
        status = next(failures, None)
        if status:
            raise Reply(status)
        return "fine"

    with serving(answer) as (url, seen):
        assert complete(OpenAIBackend(url, "m", concurrency=1, retries=2), mixed, [0])[0][0].text == "fine"
    assert len(seen) == 3


def test_server_gives_up_and_says_which_row(mixed: Any):
    def answer(body: dict[str, Any]) -> str:
        raise Reply(500)

    with serving(answer) as (url, seen), pytest.raises(ServerError, match=r"mixed.jsonl:1: http://127.0.0.1:\d+/v1: "):
        complete(OpenAIBackend(url, "m", retries=0), mixed, [0])
    assert len(seen) == 1


def test_server_has_a_time_limit(mixed: Any):
    def answer(body: dict[str, Any]) -> str:
        time.sleep(1)
        return "late"

    with serving(answer) as (url, _), pytest.raises(ServerError, match="timed out"):
        complete(OpenAIBackend(url, "m", retries=0, timeout=0.1), mixed, [0])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[openai\]"'):
        OpenAIBackend("http://localhost:1/v1", "m")


def test_space_of_name_knows_families():
    assert space_of_name("Qwen/Qwen2.5-VL-3B-Instruct") == "resized"
    assert space_of_name("qwen3-vl-8b") == "thousand"
    assert space_of_name("OpenGVLab/InternVL3-8B-hf") == "thousand"
    assert space_of_name("llava-hf/llava-onevision-qwen2-7b-ov-hf") == "unit"
    assert space_of_name("my-model") is None
    assert [task for task in ("rec", "grounding", "ovd", "seg", "vqa", "default") if needs_space(task)] == [
        "rec", "grounding", "ovd", "seg",
    ]  # fmt: skip


def test_images_are_sent_within_the_limits():
    assert limited_size((400, 100), None, 10_000) == (200, 50)
    assert limited_size((10, 40), 1600, None) == (20, 80)
    assert limited_size((30, 40), 100, 5000) == (30, 40)
    assert grid_size((100, 100), 56 * 56, 10**7) == (112, 112)  # the nearest multiples of 28


def test_boxes_in_resized_pixels_are_compared_in_what_was_sent(tmp_path: Path):
    """The image of 100 x 100 is sent as 112 x 112, so the true box [0, 0, 50, 50] is [0, 0, 56, 56] there."""
    Image.new("RGB", (100, 100), "blue").save(tmp_path / "a.png")
    line = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>the box"},
            {"from": "gpt", "value": '{"bbox_2d": [0, 0, 50, 50]}'}]}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    answer = '<think>a</think><answer>{"bbox_2d": [0, 0, 56, 56]}</answer>'
    for name, iou in (("Qwen2.5-VL-3B", 1.0), ("Qwen3-VL-8B", 56**2 / 500**2)):  # the latter counts thousandths
        with serving(lambda body: answer) as (url, _):
            flags = ["--backend", "openai", "--base_url", url, "--model_name_or_path", name, "--task_type", "rec"]
            data = ["--data_file_paths", str(tmp_path / "a.jsonl"), "--image_folders", str(tmp_path)]
            assert main([*flags, *data, "--output_dir", str(tmp_path / name)]) == 0
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert results["metrics"]["iou"]["value"] == pytest.approx(iou)


def words(url: str, digits: DigitFiles, output: Path, *more: str) -> list[str]:
    data = ["--data_file_paths", str(digits.held_out), "--image_folders", str(digits.images)]
    backend = ["--backend", "openai", "--base_url", url, "--model_name_or_path", "m"]
    return [*backend, *data, "--output_dir", str(output), "--limit", "8", *more]


def test_evaluate_through_a_server_goes_on_after_a_failure(
    digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    asked = 0

    def answer(body: dict[str, Any]) -> str:
        nonlocal asked
        asked += 1
        if asked == 6:
            raise Reply(400)
        return "<think>a</think><answer>7</answer>"

    with serving(answer) as (url, seen):
        assert main(words(url, digits, tmp_path / "out", "--concurrency", "1", "--retries", "0")) == 1
        assert "run the same command to resume" in capsys.readouterr().err
        assert not (tmp_path / "out" / "results.json").exists()
        before = len(seen)
        assert main(words(url, digits, tmp_path / "out", "--concurrency", "2")) == 0
        assert before + len(seen[before:]) == 9  # the one that failed was asked twice, no other one
    assert re.search("resuming: [56] of 8 rows", capsys.readouterr().out)  # the one after may have been on its way
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["examples"] == 8 and results["metrics"]["format"]["value"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task_type", "rec"], "set --answer_space"),
        (["--batch_size", "3"], "--batch_size has no effect with --backend openai"),
        (["--use_cpu"], "--use_cpu has no effect with --backend openai"),
        (["--dtype", "float32"], "--dtype has no effect with --backend openai"),
        (["--timeout", "0"], "--timeout must be above 0"),
    ],
)
def test_evaluate_refuses_flags_without_effect(
    more: list[str], message: str, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit, match="2"):
        main(words("http://localhost:1/v1", digits, tmp_path, *more))
    assert message in capsys.readouterr().err
