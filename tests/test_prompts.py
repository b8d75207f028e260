from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.prompts import PROMPTS, PromptTemplate, lettered, load_prompt
from vlm_grpo.records import ImageRef, Record

PLAIN = PromptTemplate("plain", "{{ question }}")
IMAGE = {"type": "image"}


def record(question: str, images: int = 0, **values: Any) -> Record:
    refs = tuple(ImageRef(f"{number}.png") for number in range(images))
    return Record(id=1, question=question, answer="a", images=refs, where="f:1", **values)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def test_markers_keep_their_place():
    (message,) = PLAIN.render(record("<image>Is <image> like\n<image><image>?", 4))
    assert message == {"role": "user", "content": [IMAGE, text("Is "), IMAGE, text(" like\n"), IMAGE, IMAGE, text("?")]}


def test_images_without_markers_come_first_in_the_first_user_turn():
    history = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "reply <image>"})
    messages = PLAIN.render(record("now <image>?", 3, history=history, system="S <image>"))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == [text("S <image>")]
    assert messages[1]["content"] == [IMAGE, IMAGE, text("first")]
    assert messages[2]["content"] == [text("reply <image>")]
    assert messages[3]["content"] == [text("now "), IMAGE, text("?")]


def test_system_turn_of_the_record_wins():
    assert PLAIN.render(record("q"), system="task")[0] == {"role": "system", "content": [text("task")]}
    assert PLAIN.render(record("q", system="own"), system="task")[0]["content"] == [text("own")]
    assert len(PLAIN.render(record("q", system=""), system="task")) == 1


def test_more_markers_than_images_names_the_prompt_and_the_line():
    twice = PromptTemplate("twice", "{{ question }} {{ question }}")
    with pytest.raises(ValueError, match="f:1: prompt twice has 2 <image> markers, but the record has 1 images"):
        twice.render(record("<image>q", 1))


def test_rendering_does_not_change_the_record():
    history = ({"role": "user", "content": "first"}, {"role": "assistant", "content": "b"})
    one = record("q", 1, history=history)
    assert PLAIN.render(one) == PLAIN.render(one)
    assert one.history[0]["content"] == "first"


def test_braces_in_a_question_are_text():
    (message,) = PLAIN.render(record("{{ 1 + 1 }} {% if %}"))
    assert message["content"] == [text("{{ 1 + 1 }} {% if %}")]


@pytest.mark.parametrize("name", list(PROMPTS))
def test_every_prompt_writes_the_question_once_and_is_clean(name: str):
    (message,) = PROMPTS[name].render(record("<image>Why <b>?", 1))
    assert message["content"].count(IMAGE) == 1
    whole = "".join(block.get("text", "") for block in message["content"])
    assert whole.count("Why <b>?") == 1
    assert whole == whole.strip()
    assert "\n\n\n" not in whole and "{%" not in whole


def test_prompts_ask_for_the_form_of_their_task():
    asked = {name: PROMPTS[name].render(record("q"))[0]["content"][0]["text"] for name in PROMPTS}
    for name in ("default", "rec", "ovd", "counting", "math", "gui"):
        assert "<think> </think>" in asked[name] and "<answer> </answer>" in asked[name]
    assert '{"bbox_2d": [x1, y1, x2, y2]}' in asked["rec"]
    assert '<answer>{"bbox_2d": [x1, y1, x2, y2]}</answer>' in asked["grounding"] and "think" not in asked["grounding"]
    assert '[{"Position": [x1, y1, x2, y2], "Confidence": c}, ...]' in asked["ovd"] and "None" in asked["ovd"]
    assert r"<answer>\boxed{...}</answer>" in asked["math"]
    for part in (
        '{"reasoning_steps": ["...", "..."], "answer": "..."}',
        "at most 14 words",
        "insufficient information",
    ):
        assert part in asked["vqa"]
    assert "<think>" not in asked["vqa"]


@pytest.mark.parametrize("name", ["default", "vqa", "math"])
def test_options_are_lettered_lines(name: str):
    with_options = PROMPTS[name].render(record("Which?", options=("red", "blue")))[0]["content"][0]["text"]
    assert with_options.startswith("Which?\nA. red\nB. blue\n")
    assert "letter of the right option" in with_options
    assert "A. " not in PROMPTS[name].render(record("Which?"))[0]["content"][0]["text"]


def test_lettered():
    assert lettered(("x", "y")) == ["A. x", "B. y"]


def test_template_can_be_pickled_after_use():
    PLAIN.render(record("q"))
    assert pickle.loads(pickle.dumps(PLAIN)).render(record("q")) == PLAIN.render(record("q"))


def test_own_template_sees_record_and_options(tmp_path: Path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }}|{{ options | join(',') }}|{{ lettered }}|{{ record.extra['hint'] }}\n")
    rendered = load_prompt(path).render(record("q", options=("x", "y"), extra={"hint": "h"}))
    assert rendered[0]["content"] == [text("q|x,y|A. x\nB. y|h")]


# Templates as RLLaVA and EasyR1 print them, and what becomes of a question with its images.
THINK_FIRST = "{{ content | trim }} You FIRST think about the reasoning process."


@pytest.mark.parametrize(
    ("template", "question", "images", "blocks"),
    [
        (THINK_FIRST, " <image>Why? ", 1, [IMAGE, text("Why? You FIRST think about the reasoning process.")]),
        ("<image>{{ content | trim }}", "<image>Why?", 1, [IMAGE, text("Why?")]),
        ("<image>\n{{ content }}", "<image><image>Why?", 2, [IMAGE, IMAGE, text("Why?")]),
        ("<image>{{ content }}", "Why?", 0, [text("Why?")]),
        ("{{ content }}\n<image>", "<image>Why?", 1, [text("Why?\n"), IMAGE]),
        ("A <image> or <image>: {{ content }}", "<image><image>Which?", 2,
         [text("A "), IMAGE, text(" or "), IMAGE, text(": Which?")]),
    ],
)  # fmt: skip
def test_templates_of_other_systems(template: str, question: str, images: int, blocks: list[Any], tmp_path: Path):
    (tmp_path / "theirs.jinja").write_text(template + "\n")
    (message,) = load_prompt(tmp_path / "theirs.jinja").render(record(question, images))
    assert message["content"] == blocks


def test_a_template_that_places_other_images_than_there_are_is_refused(tmp_path: Path):
    (tmp_path / "theirs.jinja").write_text("{{ content }} <image><image>")
    with pytest.raises(ValueError, match="has 3 <image> markers, but the record has 1 images"):
        load_prompt(tmp_path / "theirs.jinja").render(record("<image>Why?", 1))


def test_a_leading_marker_leaves_the_images_of_earlier_turns_alone(tmp_path: Path):
    history = ({"role": "user", "content": "<image>first"}, {"role": "assistant", "content": "b"})
    (tmp_path / "theirs.jinja").write_text("<image>{{ content }}")
    messages = load_prompt(tmp_path / "theirs.jinja").render(record("And now?", 1, history=history))
    assert messages[0]["content"] == [IMAGE, text("first")] and messages[2]["content"] == [text("And now?")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{{ question ", r"mine\.jinja:1: unexpected"),
        ("a\n{% if question %}", r"mine\.jinja:2: Unexpected end"),
        ("{{ qestion }}", "unknown variable 'qestion'; did you mean 'question'"),
        ("no variable", r"must contain \{\{ question \}\}"),
        (b"\xff", "must be UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_template_is_refused(tmp_path: Path, content: str | bytes | None, message: str):
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"--format_prompt .*{message}"):
        load_prompt(path)


def test_a_template_that_fails_names_prompt_and_line(tmp_path: Path):
    (tmp_path / "mine.jinja").write_text("{{ question }}{{ record.extra.hint.text }}")
    with pytest.raises(ValueError, match=r"f:1: prompt .*mine\.jinja: "):
        load_prompt(tmp_path / "mine.jinja").render(record("q"))


def test_unknown_prompt_names_the_nearest():
    with pytest.raises(KeyError, match="unknown prompt 'defualt'; did you mean 'default'"):
        PROMPTS["defualt"]
