"""Answers of an expert: read from rows and files, matched by id, and everything wrong with them named."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.data.files import turns, write_images, write_jsonl
from vlm_grpo.cli.expert_args import load_demonstrations
from vlm_grpo.cli.train import load_data, main
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.data.demonstrations import (
    ExpertAnswer,
    check_experts,
    demonstrations,
    expert_answers,
    read_experts,
    sort_expert_files,
    with_experts,
)

QUICK = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--per_device_train_batch_size", "4"]


def data(folder: Path, count: int = 4, name: str = "a.jsonl", **changes: Any) -> str:
    """A jsonl file of rows with ids 0, 1, 2, ..."""
    rows = [{"id": n, "image": "0.png", "conversations": turns("<image>q", str(n)), **changes} for n in range(count)]
    return write_jsonl(folder / name, rows)


def lines(folder: Path, *rows: Any) -> str:
    return write_jsonl(folder / "e.jsonl", list(rows))


@pytest.mark.parametrize(
    ("value", "texts"), [(None, []), ([], []), ("a", ["a"]), (["a", "b"], ["a", "b"]), (("a",), ["a"])]
)
def test_answers_of_a_row(value: Any, texts: list[str]):
    row = {"expert": value, "where": "a.jsonl:3"}
    assert expert_answers(row) == [ExpertAnswer(text, "a.jsonl:3") for text in texts]
    assert expert_answers({}) == []


@pytest.mark.parametrize("value", ["", "  ", 3, ["a", ""], ["a", None], {"text": "a"}, [["a"]], 0, False])
def test_what_is_no_answer(value: Any):
    with pytest.raises(ValueError, match=type(value).__name__):
        expert_answers({"expert": value})


def test_a_column_of_the_rows_reaches_the_trainer(tmp_path: Path):
    folder = write_images(tmp_path)
    dataset = load_dataset(data(tmp_path, expert=["one", "two"]), image_folders=str(folder))
    assert dataset[1]["expert"] == ["one", "two"] == dataset[1]["record"].extra["expert"]
    assert expert_answers(dataset[1])[1] == ExpertAnswer("two", f"{tmp_path}/a.jsonl:2")


def test_files_are_matched_by_id(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Numbers and their text are one id, lines of one id several answers; who has none and what fits none is told."""
    first = write_jsonl(tmp_path / "e.jsonl", [{"id": 1, "expert": "one"}, {"id": "3", "expert": ["x", "y"]}])
    second = write_jsonl(tmp_path / "f.jsonl", [{"id": "1", "expert": "two"}, {"id": 77, "expert": "lost"}])
    dataset = load_dataset(data(tmp_path), image_folders=str(write_images(tmp_path)))
    with caplog.at_level(logging.INFO):
        found = with_experts(dataset, f"{first}:{second}")
    assert [row["expert"] for row in found] == [[], ["one", "two"], [], ["x", "y"]]
    assert [answer.where for answer in expert_answers(found[1])] == [f"{first}:1", f"{second}:1"]
    assert "2 of 4 training rows have one, 2 have none; 1 ids match no row, first 77 at" in caplog.text
    assert f"{second}:2" in caplog.text


def test_rows_keep_their_own_answers_order_and_laziness(tmp_path: Path):
    dataset = load_dataset(data(tmp_path, expert="own"), image_folders=str(write_images(tmp_path)))
    found = with_experts(dataset.select([2, 0]), lines(tmp_path, {"id": 2, "expert": "file"}))
    assert [row["expert"] for row in found] == [["own", "file"], ["own"]]
    assert [answer.where for answer in expert_answers(found[0])] == [f"{tmp_path}/a.jsonl:3", f"{tmp_path}/e.jsonl:1"]
    again = pickle.loads(pickle.dumps(found.format["format_kwargs"]["transform"]))  # as loader processes get it
    assert again({"row": [2]})["expert"] == [["own", "file"]]


def test_streams_and_plain_data_sets_are_matched_too(tmp_path: Path):
    path = lines(tmp_path, {"id": 2, "expert": "file"})
    options = {"image_folders": str(write_images(tmp_path))}
    stream = with_experts(load_dataset(data(tmp_path), streaming=True, **options), path)
    assert [row["expert"] for row in stream] == [[], [], ["file"], []]
    plain = with_experts(Dataset.from_list([{"prompt": "p", "id": n} for n in range(3)]), path)
    assert plain["expert"][:] == [[], [], ["file"]] and plain["prompt"][:] == ["p"] * 3
    own = with_experts(Dataset.from_list([{"prompt": "p", "id": n, "expert": ["own"]} for n in (2, 3)]), path)
    assert own["expert"][:] == [["own", "file"], ["own"]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"id": 1, ', "e.jsonl:2"),
        ("[1]", "one JSON object"),
        ({"expert": "x"}, "the id of a training row"),
        ({"id": None, "expert": "x"}, "the id of a training row"),
        ({"id": True, "expert": "x"}, "the id of a training row"),
        ({"id": 1}, "missing, null or an empty list"),
        ({"id": 1, "expert": " "}, "text that is not empty"),
        ({"id": 1, "expert": ["x", 3]}, "text that is not empty"),
    ],
)
def test_a_wrong_line_is_named(row: Any, said: str, tmp_path: Path):
    path = lines(tmp_path, {"id": 0, "expert": "fine"}, row, "no json")
    with pytest.raises(DataError) as caught:
        read_experts(path)
    assert said in str(caught.value) and "e.jsonl:2" in str(caught.value) and "e.jsonl:3" in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path):
    folder = str(write_images(tmp_path))
    dataset = load_dataset(data(tmp_path), image_folders=folder)
    with pytest.raises(DataError, match="9, and none of 1 ids matches a training row"):
        with_experts(dataset, lines(tmp_path, {"id": 9, "expert": "x"}))
    with pytest.raises(DataError, match="no such file"):
        with_experts(dataset, str(tmp_path / "none.jsonl"))
    twice = load_dataset([data(tmp_path), data(tmp_path, name="b.jsonl")], image_folders=folder)
    with pytest.raises(DataError, match="the id of one training row only"):
        with_experts(twice, lines(tmp_path, {"id": 1, "expert": "x"}))
    with pytest.raises(DataError, match="no such column"):
        with_experts(Dataset.from_list([{"prompt": "p"}]), lines(tmp_path, {"id": 1, "expert": "x"}))


def test_long_and_wrong_answers_are_all_named():
    def encode(text: str) -> list[int]:
        if "<s>" in text:
            raise ValueError("the special token '<s>'")
        return [1] * (len(text.split()) + 1)

    rows = [{"expert": "a b c", "where": "a:1"}, {"expert": ["a", "a b c d"], "where": "a:2"}, {"where": "a:3"}]
    assert check_experts(rows[:1] + rows[2:], encode, 4) == 1
    rows += [{"expert": 7, "where": "a:4"}, {"expert": ["<s>"], "expert_where": ["e:9"], "where": "a:5"}]
    with pytest.raises(DataError) as caught:
        check_experts(rows, encode, 4)
    shown = [(problem.where, problem.found) for problem in caught.value.problems]
    expected = ("a:2", "5 tokens with the end of the turn"), ("a:4", "int 7"), ("e:9", "the special token '<s>'")
    assert tuple(shown) == expected


def test_the_flag_gives_answers_to_rows(tmp_path: Path):
    words = ["--data_file_paths", data(tmp_path), "--image_folders", str(write_images(tmp_path)), *QUICK]
    words += ["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--num_generations", "4"]
    path = lines(tmp_path, {"id": 2, "expert": "file"})
    with_flag = [*words, "--algorithm", "luffy", "--expert_data_file_paths", path]
    dataset, _ = load_data(*parse(with_flag)[:2])
    assert dataset[2]["expert"] == ["file"]
    for algorithm in ([], ["--algorithm", "dr_grpo"]):
        with pytest.raises(UsageError, match="--expert_data_file_paths has no effect without --algorithm luffy, srft"):
            parse([*words, *algorithm, "--expert_data_file_paths", path])


def test_a_long_answer_stops_the_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--data_file_paths", data(tmp_path), "--image_folders", str(write_images(tmp_path)), *QUICK]
    words += ["--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out"), "--num_generations", "4"]
    words += ["--max_completion_length", "8", "--algorithm", "uft"]
    path = lines(tmp_path, {"id": 2, "expert": "1 2"}, {"id": 1, "expert": json.dumps(list(range(50)))})
    assert main([*words, "--expert_data_file_paths", path]) == 2
    said = capsys.readouterr().err
    assert f"{path}:2" in said and "at most --max_completion_length 8" in said and f"{path}:1" not in said
    assert main(words) == 2
    assert "no row has an expert's answer" in capsys.readouterr().err


def parsed(folder: Path, *words: str) -> Any:
    given = [*QUICK, "--model_name_or_path", "m", "--output_dir", str(folder), "--num_generations", "4", *words]
    return load_data(*parse(given)[:2])[0]


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--max_steps", "3"]])
def test_a_thought_and_an_answer_become_an_experts_answer(streaming: list[str], tmp_path: Path):
    """LUFFY's columns, in the form of each row's task; one that has its tags already is left as it is."""
    rows = [
        {"problem": "q", "answer": "3", "thinking": "One, two, three.", "solution": 3},
        {"problem": "q", "answer": "3", "thinking": "<think>x</think>", "solution": "<answer>3</answer>"},
        {"problem": "q", "answer": "x", "task": "math", "thinking": "Halve it.", "solution": "$x$"},
        {"problem": "q", "answer": "B", "task": "vqa", "thinking": "A sign.\nIt is red.", "solution": "B"},
        {"problem": "q", "answer": "3", "thinking": "No solution."},
    ]
    words = ["--data_file_paths", lines(tmp_path, *rows), "--algorithm", "luffy", "--expert_key", "thinking+solution"]
    found = parsed(tmp_path, *words, *streaming)
    assert [row["expert"] for row in found] == [
        "<think>One, two, three.</think>\n<answer>3</answer>",
        "<think>x</think>\n<answer>3</answer>",
        "<think>Halve it.</think>\n<answer>\\boxed{x}</answer>",
        '{"reasoning_steps": ["A sign.", "It is red."], "answer": "B"}',
        None,
    ]
    named = [*words[:-1], "thinking", *streaming]
    assert [row["expert"] for row in parsed(tmp_path, *named)][:2] == ["One, two, three.", "<think>x</think>"]
    for key, said in (("thinkin", "a column of the data"), ("a+b+c", "must be one column, or two as in thinking")):
        with pytest.raises(UsageError, match=rf"--expert_key.*{said}"):
            parsed(tmp_path, *words[:-1], key)
    with pytest.raises(UsageError, match="--expert_key has no effect without --algorithm luffy"):
        parsed(tmp_path, *words[:2], *words[4:])


SAID = "<think>One.</think>\\n<answer>1</answer>".replace("\\n", "\n")


@pytest.mark.parametrize(
    "row",
    [
        {"image": "1.png", "conversations": turns("<image>How many?", SAID), "task": "sft"},
        {
            "image": "1.png",
            "messages": [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": SAID}],
        },
        {"image": "1.png", "problem": "<image>How many?", "solution": SAID},
    ],
)
def test_demonstrations_are_asked_as_they_stand(row: dict, tmp_path: Path):
    folder, sft = write_images(tmp_path), lines(tmp_path, row)
    assert sort_expert_files(f"{sft}:{write_jsonl(tmp_path / 'f.jsonl', [{'id': 1, 'expert': 'x'}])}") == (
        [sft],
        [f"{tmp_path}/f.jsonl"],
    )
    (shown,) = demonstrations([sft], str(folder))
    assert [block.get("text", "an image") for block in shown["prompt"][0]["content"]] == ["an image", "How many?"]
    assert shown["images"][0].source == f"{folder}/1.png"
    assert expert_answers(shown) == [ExpertAnswer(SAID, f"{sft}:1")]
    words = ["--data_file_paths", data(tmp_path), "--image_folders", str(folder), "--expert_data_file_paths", sft]
    given = [*QUICK, *words, "--model_name_or_path", "m", "--output_dir", str(tmp_path), "--num_generations", "4"]
    found = [load_demonstrations(*parse([*given, "--algorithm", name])[:2]) for name in ("chord",)]
    assert found[0][0]["expert"] == SAID
    with pytest.raises(UsageError, match="its own questions, which only --algorithm chord supports; --algorithm luffy"):
        load_demonstrations(*parse([*given, "--algorithm", "luffy"])[:2])


def test_what_is_wrong_with_demonstrations_is_in_one_table(tmp_path: Path):
    rows = [{"problem": "q"}, {"problem": "q", "answer": "a", "image": "9.png"}, {"conversations": turns("", "a")}]
    with pytest.raises(DataError) as error:
        demonstrations([lines(tmp_path, *rows)], str(write_images(tmp_path)))
    for part in ("e.jsonl:1", "an assistant turn at the end, or an answer", "e.jsonl:2", "no such file", "e.jsonl:3"):
        assert part in str(error.value)
