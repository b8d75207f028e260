from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.cli.preview import main


def flags(folder: Path, rows: list) -> list[str]:
    path = write_jsonl(folder / "a.jsonl", rows)
    return ["--data_file_paths", path, "--image_folders", str(write_images(folder))]


def row(number: int, answer: object = "3", **values: object) -> dict:
    return {
        "id": number,
        "image": ["0.png", "1.png"],
        "conversations": turns("Is <image> like <image>?", answer),
        **values,
    }


def test_preview_shows_images_in_place_and_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*flags(tmp_path, [row(n) for n in range(5)]), "--count", "2", "--task_type", "counting"]) == 0
    out = capsys.readouterr().out
    assert out.count("=== ") == 2
    images = tmp_path / "images"
    assert f"[user] Is [image: {images}/0.png 8x6] like [image: {images}/1.png 8x6]?" in out
    assert "<answer>3</answer>\n--- its rewards\naccuracy: 1\nformat: 1" in out
    assert "WARNING" not in out


def test_a_gold_answer_that_earns_too_little_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = {"question": "Which?", "answer": "3", "options": ["x", "y"], "accu_reward_method": "mcq"}
    box = {"question": "Where?", "answer": [5, 5, 5, 5]}
    assert main([*flags(tmp_path, [row(1), wrong, box]), "--reward_funcs", "accuracy", "iou"]) == 0
    out = capsys.readouterr().out
    assert "accuracy: not applicable" in out
    assert re.findall(r"WARNING: .*", out) == [
        f"WARNING: {tmp_path}/a.jsonl:3 (id 2): the gold answer gets iou 0 instead of 1"
    ]


def test_rewards_can_be_named_and_may_be_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.py").write_text("def half(completion, record):\n    return 0.5 if '3' in completion else 0.0\n")
    assert main([*flags(tmp_path, [row(1)]), "--reward_funcs", f"{tmp_path}/mine.py:half", "format:2"]) == 0
    assert f"{tmp_path}/mine.py:half: 0.5\nformat:2: 1" in capsys.readouterr().out


def test_a_reward_that_is_awaited_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.py").write_text("async def two(completions, **columns):\n    return [0.25] * len(completions)\n")
    assert main([*flags(tmp_path, [row(1)]), "--reward_funcs", f"{tmp_path}/mine.py:two"]) == 0
    assert f"{tmp_path}/mine.py:two: 0.25" in capsys.readouterr().out


def test_page_stands_alone_and_escapes_what_data_says(tmp_path: Path):
    page = tmp_path / "preview.html"
    bad = "<script>alert(1)</script>"
    assert main([*flags(tmp_path, [row(1, bad)]), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list) -> None:
            tags.append((tag, dict(attributes)))

    Reader().feed(text)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 2
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)
    assert not {"script", "link"} & {tag for tag, _ in tags}
    assert text.index("Is <figure>") < text.index("images/0.png") < text.index(" like ") < text.index("images/1.png")


def test_own_prompt_and_keys_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.jinja").write_text("Look: {{ question }}")
    words = flags(tmp_path, [{"ask": "q", "gold": "a"}])
    assert (
        main([*words, "--prompt_key", "ask", "--answer_key", "gold", "--format_prompt", f"{tmp_path}/mine.jinja"]) == 0
    )
    assert "[user] Look: q\n" in capsys.readouterr().out


def test_only_shown_rows_have_to_be_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = flags(tmp_path, [row(1), "{"])
    assert main([*words, "--count", "1"]) == 0
    assert main(words) == 1
    assert "a.jsonl:2" in capsys.readouterr().err
    (tmp_path / "images" / "0.png").write_bytes(b"")
    assert main([*words, "--count", "1"]) == 1
    assert "a.jsonl:1: cannot decode" in capsys.readouterr().err


def test_chat_template_of_a_model(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*flags(tmp_path, [row(1)]), "--model_name_or_path", str(tiny_model)]) == 0
    templated = capsys.readouterr().out.split("--- in the chat template\n")[1]
    assert templated.count("<|image_pad|>") == 2
    assert "<|im_start|>assistant" in templated


@pytest.mark.parametrize(
    ("words", "box"),
    [
        ([], "[2, 1, 4, 3]"),
        (["--answer_space", "thousand"], "[250, 166.666667, 500, 500]"),
        (["--answer_space", "unit"], "[0.25, 0.166667, 0.5, 0.5]"),
        (["--model_name_or_path", "qwen3_vl"], "[250, 166.666667, 500, 500]"),
        (["--model_name_or_path", "qwen3_vl", "--answer_space", "original"], "[2, 1, 4, 3]"),
    ],
)
def test_the_gold_box_is_written_in_the_space_of_the_model(
    words: list[str], box: str, folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The image has 8 x 6 pixels."""
    words = [str(folder_of(word)) if word == "qwen3_vl" else word for word in words]
    where = {"id": 0, "image": ["0.png"], "conversations": turns("<image>it", [2, 1, 4, 3])}
    assert main([*flags(tmp_path, [where]), "--task_type", "rec", *words]) == 0
    out = capsys.readouterr().out
    assert f'<answer>{{"bbox_2d": {box}}}</answer>' in out
    assert re.search(r"^iou\S*: 1$", out, flags=re.MULTILINE) and "WARNING" not in out


def test_a_box_in_resized_pixels_is_that_of_the_processor(
    folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Qwen2.5-VL enlarges 8 x 6 pixels to 84 x 56 here."""
    where = {"id": 0, "image": ["0.png"], "conversations": turns("<image>it", [2, 3, 4, 6])}
    given = [*flags(tmp_path, [where]), "--task_type", "rec"]
    assert main([*given, "--model_name_or_path", str(folder_of("qwen2_5_vl"))]) == 0
    assert '<answer>{"bbox_2d": [21, 28, 42, 56]}</answer>' in capsys.readouterr().out
    assert main([*given, "--answer_space", "resized"]) == 1
    assert "--answer_space resized needs --model_name_or_path" in capsys.readouterr().err


def test_a_guessed_space_is_told_of_once(folder_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where = {"image": ["0.png"], "conversations": turns("<image>it", [2, 1, 4, 3])}
    given = flags(tmp_path, [{**where, "id": number} for number in range(3)])
    assert main([*given, "--task_type", "rec", "--model_name_or_path", str(folder_of("mistral3"))]) == 0
    assert capsys.readouterr().err.count("boxes are read as pixels of the original image") == 1
