from __future__ import annotations

import re
from typing import Any

import pytest

from tests.data.files import png, turns
from vlm_grpo.data.gold_answers import strip_option_letters
from vlm_grpo.data.parsing import ReaderConfig, parse_row
from vlm_grpo.prompts import PROMPTS
from vlm_grpo.records import ImageRef, Record


def read(row: dict[str, Any], **config: Any) -> Record:
    record, problems, *_ = parse_row(row, "f:1", 7, ReaderConfig(**config))
    assert record is not None, problems
    return record


def complaints(row: dict[str, Any], **config: Any) -> list[tuple[str, str, str]]:
    record, problems, *_ = parse_row(row, "f:1", 7, ReaderConfig(**config))
    assert (record is None) == any(not problem.is_warning for problem in problems)
    assert all(problem.where == "f:1" for problem in problems)
    return [(problem.field, problem.found, problem.expected) for problem in problems]


def sources(record: Record) -> list[Any]:
    return [ref.source for ref in record.images]


def test_conversation_is_question_and_answer():
    row = {
        "id": "x1",
        "image": ["a/1.png", "a/2.png"],
        "conversations": turns("<image><image>How many?", "3"),
        "accu_reward_method": "numeric",
        "level": [1, 2],
    }
    assert read(row, folder="/d", task="counting") == Record(
        id="x1",
        question="<image><image>How many?",
        answer="3",
        images=(ImageRef("/d/a/1.png", "f:1"), ImageRef("/d/a/2.png", "f:1")),
        task="counting",
        method="numeric",
        where="f:1",
        extra={"level": [1, 2], "accu_reward_method": "numeric"},
    )


def test_text_only_conversation_has_no_images_and_is_numbered():
    for image in ({}, {"image": None}, {"image": []}, {"images": ""}):
        record = read({"conversations": turns("Hi?", "yes"), **image})
        assert (record.id, record.images, record.method) == (7, (), None)


def test_system_and_earlier_turns_are_kept():
    row = {
        "image": ["0.png", "1.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            *turns("<image>First?", {"a": 1}),
            *turns("And <image>?", "<think>x</think><answer> no </answer>"),
        ],
    }
    record = read(row)
    assert record.system == "Be brief."
    assert record.history == (
        {"role": "user", "content": "<image>First?"},
        {"role": "assistant", "content": '{"a": 1}'},
    )
    assert (record.question, record.answer) == ("And <image>?", "no")


@pytest.mark.parametrize("answer", [{"bbox_2d": [1, 2, 3, 4]}, [[1, 2]], 3, 2.5, False, "{'a': 1}"])
def test_answers_of_every_json_type_stay_what_they_are(answer: Any):
    assert read({"conversations": turns("q", answer)}).answer == answer
    assert read({"question": "q", "answer": answer}).answer == answer


def test_images_without_a_marker_come_first_with_a_warning():
    row = {"image": ["0.png", "1.png", "2.png"], "conversations": turns("Is <image> odd?", "no")}
    record = read(row)
    assert record.question == "<image><image>Is <image> odd?"
    assert sources(record) == ["0.png", "1.png", "2.png"]
    expected = "a marker for every image; images without one are placed first"
    assert complaints(row) == [("conversations", "1 <image> markers for 3 images", expected)]


def test_images_without_a_marker_go_to_the_first_human_turn():
    record = read({"image": "0.png", "conversations": [*turns("a", "b"), *turns("c", "d")]})
    assert record.history[0]["content"] == "<image>a"
    assert record.question == "c"


def test_columns_without_any_marker_are_no_reason_to_warn():
    row = {"image": "0.png", "question": "q", "answer": "a"}
    assert complaints(row) == []
    assert read(row).question == "<image>q"


def test_more_markers_than_images_is_an_error():
    row = {"image": "0.png", "conversations": turns("<image><image>q", "a")}
    assert complaints(row) == [("conversations", "2 <image> markers", "as many images, the row has 1")]
    history = {"conversations": [*turns("<image>a", "b"), *turns("c", "d")]}
    assert complaints(history) == [("conversations", "1 <image> markers", "as many images, the row has 0")]


def test_a_lost_image_still_counts_against_markers():
    row = {"image": ["0.png", 5], "conversations": turns("<image><image>q", "a")}
    assert [field for field, _, _ in complaints(row)] == ["image[1]"]


def test_markers_in_the_answer_are_text():
    assert read({"conversations": turns("q", "<image>")}).answer == "<image>"
    assert read({"conversations": [*turns("a", "<image>"), *turns("c", "d")]}).images == ()


def test_columns_take_their_usual_names_or_the_given_ones():
    assert read({"problem": "p", "solution": "<answer>s</answer>"}).answer == "s"
    row = {"ask": "p", "gold": 3, "picture": {"bytes": b"\x89PNG", "path": "x"}, "question": "other", "answer": "other"}
    record = read(row, prompt_key="ask", answer_key="gold", image_key="picture")
    assert (record.question, record.answer, sources(record)) == ("<image>p", 3, [b"\x89PNG"])
    assert record.extra == {"gold": 3, "question": "other", "answer": "other"}


def test_a_missing_column_names_those_that_are_there():
    (problem,) = complaints({"text": "p", "answer": "a"})
    assert problem[:2] == ("conversations", "missing or null (the row has: text, answer)")
    (problem,) = complaints({"question": "p", "label": "a"}, answer_key="gold")
    assert problem == ("gold", "missing or null (the row has: question, label)", problem[2])
    assert "column gold" in problem[2]


def test_vqa_row_has_options_and_steps():
    row = {
        "image": "0.png",
        "question": "Which?",
        "answer": "B",
        "choices": ["A. dog", "B. cat"],
        "reference_steps": ["Ears are pointed."],
        "source": "pets",
    }
    record = read(row, task="vqa")
    assert record.options == ("dog", "cat")
    assert record.reference_steps == ("Ears are pointed.",)
    assert record.extra["source"] == "pets"
    assert read({**row, "choices": None, "options": {"A": "x", "B": 2}}).options == ("x", "2")


def test_strip_option_letters_needs_all_letters_in_order():
    assert strip_option_letters(["(A) x", "(B) y"]) == ("x", "y")
    assert strip_option_letters(["A. x", "C. y"]) == ("A. x", "C. y")
    assert strip_option_letters(["A", "B"]) == ("A", "B")


def test_chat_messages_with_images_in_their_blocks():
    content = [
        {"type": "text", "text": "Is ", "image": None},
        {"type": "image", "text": None, "image": {"bytes": png(), "path": None}},
        {"type": "text", "text": " like "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    row = {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": content}], "answer": "no"}
    record = read({**row, "images": ["1.png"]})
    assert record.question == "Is <image> like <image>?"
    assert sources(record) == [png(), "1.png"]
    assert record.system == "S"
    assert read({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).answer == "a"


def test_a_record_names_its_own_task_and_method():
    record = read({"question": "q", "answer": "a", "task": "counting"}, method="exact")
    assert (record.task, record.method) == ("counting", "exact")
    assert read({"question": "q", "answer": "a", "accu_reward_method": "text"}, method="exact").method == "text"


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("row", "field", "found", "expected"),
    [
        ({"conversations": 3}, "conversations", "int 3", "a list of turns"),
        ({"conversations": "q"}, "conversations", "str 'q'", "a list of turns"),
        ({"conversations": []}, "conversations", r"list \[\]", "a list of turns"),
        ({"conversations": ["a"]}, r"conversations\[0\]", "str 'a'", '"from": "human"'),
        ({"conversations": [{"from": "bot", "value": "a"}]}, r"conversations\[0\].from", "'bot'", "one of human"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\].value", "missing", "value"),
        ({"conversations": turns("a", "b")[::-1]}, "conversations", "turns assistant, user", "alternating"),
        ({"conversations": turns("a", "b")[:1]}, "answer", "missing", "a gpt turn at the end"),
        ({"conversations": turns(" ", "b")}, "conversations", "an empty question", "text in the human turn"),
        ({"conversations": turns("a", " ")}, r"conversations\[1\].value", "empty text", "the gold answer"),
        ({"conversations": turns(["a"], "b")}, r"conversations\[0\].value\[0\]", "'a'", "blocks"),
        ({"conversations": turns({"a": 1}, "b")}, r"conversations\[0\].value", "dict", "text"),
        ({**GOOD, "question": "  "}, "question", "empty text", "a question"),
        ({**GOOD, "question": 5}, "question", "int 5", "text, or a list of chat messages"),
        ({**GOOD, "answer": float("nan")}, "answer", "float nan", "text, a number"),
        ({**GOOD, "answer": float("inf")}, "answer", "float inf", "text, a number"),
        ({**GOOD, "answer": {"a": [1, float("nan")]}}, "answer", "dict", "text, a number"),
        ({**GOOD, "answer": ""}, "answer", "empty text", "the gold answer"),
        ({**GOOD, "answer": None}, "answer", "missing or null", "the answer"),
        ({**GOOD, "answer": b"x"}, "answer", "bytes b'x'", "text, a number"),
        ({**GOOD, "image": 3}, "image", "int 3", "a path, URL"),
        ({**GOOD, "image": ["a.png", None]}, r"image\[1\]", "NoneType None", "a path, URL"),
        ({**GOOD, "image": {"url": "x"}}, "image", "dict", "a path, URL"),
        ({**GOOD, "image": "../a.png"}, "image", r"'../a.png'", "a path inside /d .*--allow_outside"),
        ({**GOOD, "image": "data:image/png,xx"}, "image", "a data URL must be base64", "a path, URL"),
        ({**GOOD, "clip": "../a.mp4"}, "clip", "'../a.mp4'", "a path inside"),
        ({**GOOD, "clip": ["a.png", "../b.png"]}, "clip", "'../b.png'", "a path inside"),
        ({**GOOD, "clip": [7]}, "clip", "int 7", "a path, URL, list of frames"),
        ({**GOOD, "clip": 7}, "clip", "int 7", "a path, URL, list of frames"),
        ({"conversations": turns("<video>q", "a")}, "conversations", "1 <video> markers", "the row has 0"),
        ({**GOOD, "options": "abc"}, "options", "str 'abc'", "a list of at most 26 texts"),
        ({**GOOD, "options": [["a"]]}, "options", "list", "a list of at most 26 texts"),
        ({**GOOD, "options": {"x": "a"}}, "options", "dict", "a list of at most 26 texts"),
        ({**GOOD, "choices": ["a"] * 27}, "choices", "list", "a list of at most 26 texts"),
        ({**GOOD, "reference_steps": "a step"}, "reference_steps", "str 'a step'", "a list of non-empty texts"),
        ({**GOOD, "reference_steps": ["a", ""]}, "reference_steps", "list", "a list of non-empty texts"),
        ({**GOOD, "id": 1.5}, "id", "float 1.5", "text or a whole number"),
        ({**GOOD, "id": True}, "id", "bool True", "text or a whole number"),
        ({**GOOD, "task": "countin"}, "task", "'countin'", r"counting .*\(did you mean"),
        ({**GOOD, "accu_reward_method": "zzz"}, "accu_reward_method", "'zzz'", "one of auto, "),
        ({**GOOD, "accu_reward_method": ["exact"]}, "accu_reward_method", "exact", "one of auto, "),
    ],
)  # fmt: skip
def test_every_wrong_field_is_named_once(row: dict[str, Any], field: str, found: str, expected: str):
    (problem,) = complaints(row, folder="/d", video_key="clip")
    for text, pattern in zip(problem, (field + ".*", found, expected), strict=True):
        assert re.search(pattern, text), (problem, pattern)


def test_all_problems_of_a_row_are_found_together():
    row = {"id": [], "question": "q", "answer": "", "image": ["../a.png", 3], "options": 1, "accu_reward_method": "x"}
    fields = {field for field, _, _ in complaints(row)}
    assert fields == {"id", "answer", "image[0]", "image[1]", "options", "accu_reward_method"}


def test_outside_images_can_be_allowed():
    record = read({**GOOD, "image": "../a.png"}, folder="/d/x", allow_outside=True)
    assert sources(record) == ["/d/a.png"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("a.mp4", ["/d/a.mp4"]),
        (["a.mp4", "b.mp4"], ["/d/a.mp4", "/d/b.mp4"]),
        (["0.png", "1.png"], [["/d/0.png", "/d/1.png"]]),
        ([["0.png", "1.png"], "b.mp4"], [["/d/0.png", "/d/1.png"], "/d/b.mp4"]),
        ({"video": "a.mp4", "fps": 4, "max_frames": 8}, ["/d/a.mp4"]),
    ],
)
def test_videos_are_files_or_lists_of_frames(column: Any, expected: list):
    for name, config in (("video", ReaderConfig(folder="/d")), ("clip", ReaderConfig(folder="/d", video_key="clip"))):
        record = parse_row({**GOOD, name: column}, "f:1", 0, config).record
        found = [v.source if isinstance(v.source, str) else [f.source for f in v.source] for v in record.videos]
        assert found == expected
    if isinstance(column, dict):
        assert (record.videos[0].fps, record.videos[0].max_frames) == (4, 8)


def test_video_markers_keep_their_place_and_others_come_first():
    row = {"image": "0.png", "videos": ["a.mp4", "b.mp4"], "conversations": turns("<image>see <video> now", "a")}
    record = parse_row(row, "f:1", 0, ReaderConfig()).record
    (message,) = PROMPTS["counting"].render(record)
    assert [block["type"] for block in message["content"]][:5] == ["video", "image", "text", "video", "text"]
    text = parse_row({"conversations": turns("what is <vid>?", "a")}, "f:1", 0, ReaderConfig()).record
    assert all(block["type"] == "text" for block in PROMPTS["counting"].render(text)[0]["content"])
