"""pick_image: scripted episodes, and that an episode is a function of its number."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.envs import find_environment, make_tool_call_str, parse_tool_call_str
from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.pick_image import OUTCOMES, PickImage, repeatable_episodes, subject_of
from vlm_grpo.envs.tool_executor import ToolJob, execute_tool_calls
from vlm_grpo.rewards.tool_call import ToolCall
from vlm_grpo.synthetic.candidates import COLORS, write_candidates
from vlm_grpo.tool_call_formats import parse_tool_calls


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_candidates(tmp_path / "toy", rows=24)
    return str(tmp_path / "toy")


def shown(blocks: list[dict[str, Any]]) -> list[str]:
    return [block["image"].source for block in blocks if block["type"] == "image"]


def test_an_episode_is_a_function_of_seed_and_number(folder: str):
    one, other = (PickImage(data_root=folder, fixed_correct_index=-1) for _ in range(2))
    for number in range(20):
        assert one.reset(episode=number, seed=3) == other.reset(episode=number, seed=3)
        assert one.correct == other.correct
    again = one.reset(episode=7, seed=3)
    assert shown(again) != shown(one.reset(episode=8, seed=3))
    assert shown(again) != shown(one.reset(episode=7, seed=4))


def test_the_right_image_is_asked_for_by_name(folder: str):
    environment, places = PickImage(data_root=folder, fixed_correct_index=-1), Counter()
    for number in range(200):
        blocks = environment.reset(episode=number)
        names = [subject_of(Path(path)) for path in shown(blocks)]
        assert len(set(names)) == 4
        assert f"shows: {names[environment.correct]}?" in blocks[-1]["text"]
        places[environment.correct] += 1
    assert set(places) == {0, 1, 2, 3}
    assert min(places.values()) > 30
    fixed = PickImage(data_root=folder, fixed_correct_index=2)
    assert {fixed.reset(episode=n) and fixed.correct for n in range(9)} == {2}
    fleets = PickImage(data_root=folder)
    assert {fleets.reset(episode=n) and fleets.correct for n in range(9)} == {0}


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ('{"tool_name": "pick_image", "arguments": {"i": 0}}', "right"),
        ('{"tool_name": "pick_image", "arguments": {"i": 3}}', "wrong"),
        ('{"tool_name": "pick_image", "arguments": {"j": 0}}', "invalid_call"),
        ('{"tool_name": 7, "arguments": {"i": 0}}', "invalid_call"),
    ],
)
def test_fleets_form_of_a_call_is_read(said: str, outcome: str, folder: str):
    environment = PickImage(data_root=folder)
    environment.reset(episode=1)
    calls = parse_tool_calls(f"<tool_call>{said}</tool_call>")
    (done,) = execute_tool_calls([ToolJob({"pick_image": environment.pick_image}, calls, "a call")], seconds=5)
    if done.results[0].is_failure:
        environment.failed(calls[0].name or "", str(done.results[0].content))
    assert environment.outcome == outcome


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (None, "no_call"),
        (ToolCall(None, None), "invalid_call"),
        (ToolCall("pick", {"index": 0}), "invalid_call"),
        (ToolCall("pick_image", {"number": 0}), "invalid_call"),
        (ToolCall("pick_image", {"index": "0"}), "invalid_call"),
        (ToolCall("pick_image", {"index": True}), "invalid_call"),
        (ToolCall("pick_image", {"index": 4}), "out_of_range"),
        (ToolCall("pick_image", {"index": -1}), "out_of_range"),
        (ToolCall("pick_image", {"index": 1}), "wrong"),
        (ToolCall("pick_image", {"index": 0}), "right"),
    ],
)
def test_outcomes_are_told_apart(call: ToolCall | None, outcome: str, folder: str):
    environment = PickImage(data_root=folder, fixed_correct_index=0)
    environment.reset(episode=1)
    if call is not None:
        (done,) = execute_tool_calls([ToolJob({"pick_image": environment.pick_image}, [call], "a call")], seconds=5)
        if done.results[0].is_failure:
            environment.failed(call.name or "", str(done.results[0].content))
    assert environment.outcome == outcome
    assert environment.get_reward() == OUTCOMES[outcome]
    assert environment.done == (outcome in ("right", "wrong", "out_of_range"))
    metrics = environment.metrics()
    assert sum(metrics.values()) == metrics["success" if outcome == "right" else outcome] == 1.0


def test_every_outcome_earns_something_else():
    assert sorted(OUTCOMES.values()) == list(OUTCOMES.values())
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)


def test_calls_are_written_and_read_back():
    for arguments in ({"index": 3}, {}, {"text": "</tool", "n": [1, {"a": None}]}):
        assert parse_tool_call_str(f"I think. {make_tool_call_str('pick_image', arguments)}") == (
            "pick_image",
            arguments,
        )
    assert parse_tool_call_str("no call") is None
    assert parse_tool_call_str(make_tool_call_str("a", {}) * 2) is None


def test_episodes_go_on_without_end(folder: str):
    rows = list(islice(repeatable_episodes(seed=5, first=3), 4))
    assert [(row["episode"], row["seed"]) for row in rows] == [(3, 5), (4, 5), (5, 5), (6, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_root": "nowhere"}, "--data_root nowhere: no such folder"),
        ({"candidates_per_episode": 1}, "--candidates_per_episode must be at least 2, got 1"),
        ({"fixed_correct_index": 4}, "--fixed_correct_index must be from 0 to 3, or -1 for a random index, got 4"),
        ({"candidates_per_episode": 9}, "only 8 subjects for --candidates_per_episode 9"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str, folder: str):
    with pytest.raises(ValueError, match=message):
        PickImage(**{"data_root": folder, **options})


def test_toy_images_are_named_by_their_color(tmp_path: Path):
    paths = write_candidates(tmp_path, rows=16)
    assert {subject_of(path) for path in paths} == set(COLORS)
    same = write_candidates(tmp_path / "again", rows=16)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in same]
    with pytest.raises(ValueError, match="--rows must be at least 8"):
        write_candidates(tmp_path, rows=7)


@pytest.mark.parametrize(
    ("file", "name"),
    [("red_circle_2.png", "red circle"), ("dog.jpg", "dog"), ("12.png", "12"), ("a-b-003.png", "a b")],
)
def test_names_come_from_files(file: str, name: str):
    assert subject_of(Path(file)) == name


def test_environments_are_found_by_name_and_file(tmp_path: Path):
    assert find_environment("pick_image") is PickImage
    (tmp_path / "own.py").write_text("class Mine:\n    def reset(self, **row):\n        return None\n")
    assert find_environment(f"{tmp_path}/own.py:Mine").__name__ == "Mine"
    with pytest.raises(KeyError, match="did you mean 'pick_image'"):
        find_environment("pick_images")
    with pytest.raises(ToolError):
        raise ToolError("words for the model")
