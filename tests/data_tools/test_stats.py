from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest

from tests.data.files import png, turns, write_jsonl
from tests.data_tools.files import run_tool
from vlm_grpo.data.stats import quantiles
from vlm_grpo.records import ImageRef

SIZES = {"a.png": (4, 6), "b.png": (10, 20), "c.png": (100, 30)}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Five rows: two images, twice the same question, once with another answer, and a line that is no JSON."""
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(png(size=size))
    rows = [
        {"image": "a.png", "conversations": turns("<image>How many are there?", "3")},
        {"image": "a.png", "conversations": turns("<image>How  many are there?", "3")},
        {"image": "a.png", "conversations": turns("<image>How many are there?", "4")},
        {
            "image": ["b.png", "c.png"],
            "conversations": turns("<image><image>the dog", {"bbox_2d": [1, 2, 3, 4]}),
            "task": "rec",
        },
        {"conversations": turns("Is it?", "yes"), "accu_reward_method": "yes_no"},
        "{",
    ]
    return ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", rows), "--image_folders", str(tmp_path)]


def numbers(folder: Path, *words: str, status: int = 1) -> dict:
    done = run_tool("stats", *words, "--json", folder / "stats.json", "--overwrite")
    assert done.returncode == status, done.stderr
    return json.loads((folder / "stats.json").read_text())


def test_numbers_are_those_counted_by_hand(tmp_path: Path, data: list[str]):
    found = numbers(tmp_path, *data)
    assert (found["rows"], found["rows that cannot be read"]) == (5, 1)
    assert found["tasks"] == {"default": 4, "rec": 1}
    assert found["images per row"] == {"1": 3, "0": 1, "2": 1}
    assert found["answer types"] == {"numeric": 3, "box": 1, "yes_no": 1}
    assert found["accuracy methods"] == {"of the task": 4, "yes_no": 1}
    assert (found["prompt words"]["min"], found["prompt words"]["50%"], found["prompt words"]["max"]) == (2, 4, 4)
    assert found["prompt words"]["mean"] == 3.2  # 4, 4, 4, 2 and 2
    assert found["images"] == {"different": 3}
    assert (found["image pixels"]["min"], found["image pixels"]["50%"], found["image pixels"]["max"]) == (24, 200, 3000)
    assert (found["image width"]["max"], found["image height"]["max"]) == (100, 30)
    assert found["duplicates"] == {"rows": 2, "with another answer": 1}
    assert found["first duplicates"][1].endswith(
        "a.jsonl:3 repeats " + found["first duplicates"][0].split()[-1] + ", with another answer"
    )
    assert found["most common answers"] == {"3": 2, "4": 1, '{"bbox_2d": [1, 2, 3, 4]}': 1, "yes": 1}
    assert found["majority baseline"] == 0.4 and found["different answers"] == 4


def test_the_table_says_the_same(data: list[str]):
    done = run_tool("stats", *data)
    assert done.returncode == 1
    assert "majority baseline: 40.0%" in done.stdout and "        2   40.0%  '3'" in done.stdout
    assert "a.jsonl:6: line" in done.stderr and "check.py" in done.stderr


def test_quantiles_are_values_that_occur():
    found = quantiles(array("q", [1, 2, 3, 10]))
    assert (found["25%"], found["50%"], found["75%"], found["95%"], found["mean"]) == (1, 2, 3, 10, 4.0)
    assert quantiles(array("q")) == {}


def test_flags_are_used(tmp_path: Path, data: list[str]):
    assert list(numbers(tmp_path, *data, "--top", "1")["most common answers"]) == ["3"]
    assert numbers(tmp_path, *data, "--task_type", "counting")["tasks"] == {"counting": 4, "rec": 1}
    assert numbers(tmp_path, *data, "--reward_method", "exact")["accuracy methods"] == {"exact": 4, "yes_no": 1}
    again = run_tool("stats", *data, "--json", tmp_path / "stats.json")
    assert again.returncode == 2 and "--overwrite" in again.stderr and not again.stdout


def test_missing_images_are_counted(tmp_path: Path, data: list[str]):
    (tmp_path / "a.png").unlink()
    assert numbers(tmp_path, *data)["images"] == {"different": 3, "unreadable": 1}


def test_tokens_are_those_of_the_processor(tmp_path: Path, data: list[str], tiny_model: Path):
    from transformers import AutoProcessor

    from vlm_grpo.data.images import open_image

    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    data[1] = write_jsonl(tmp_path / "rec.jsonl", [rows[3]])
    found = numbers(tmp_path, *data, "--model_name_or_path", str(tiny_model), status=0)
    processor = AutoProcessor.from_pretrained(tiny_model)
    before, after = ({"type": "text", "text": text} for text in PROMPT)
    content = [before, {"type": "image"}, {"type": "image"}, after]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [open_image(ImageRef(str(tmp_path / name))) for name in ("b.png", "c.png")]
    ids = processor(text=[text], images=images).input_ids[0]
    assert found["prompt tokens"]["min"] == len(ids)
    assert found["answer tokens"]["min"] == len(processor.tokenizer('{"bbox_2d": [1, 2, 3, 4]}').input_ids)


PROMPT = (
    "Find the region of the image that fits this description: ",
    "the dog\nWrite your reasoning inside <think> </think>, then only the bounding box inside <answer> </answer>, "
    'as JSON: {"bbox_2d": [x1, y1, x2, y2]}',
)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "set either"),
        (["--data_file_paths", "none.jsonl"], 1, "no such file"),
        (["--data_file_paths", "a.jsonl", "--overwrite"], 2, "--overwrite has no effect without --json"),
        (["--data_file_paths", "a.jsonl", "--top", "0"], 2, "at least 1"),
        (["--data_file_paths", "a.jsonl", "--task_type", "zzz"], 2, "unknown task"),
        (["--data_file_paths", "a.jsonl", "--json", "no/stats.json"], 2, "create it first"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: list[str], status: int, said: str):
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": turns("q", "a")}])
    done = run_tool("stats", *words, cwd=tmp_path)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
