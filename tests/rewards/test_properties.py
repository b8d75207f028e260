"""What holds for every text and every box."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_grpo.rewards import REWARDS, make_reward, score
from vlm_grpo.rewards.numeric import parse_quantity, quantities_equal
from vlm_grpo.tasks import TASKS

TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", '"answer"', "7", "12 cm", "B", "yes",
             ",", "$", "\\boxed{", "1e5", "[1, 2, 3, 4]", "2019-05-01", " ", "\n", "bbox_2d", "/", "0",
             "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "None", "three", "1e999",
             '[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]', '[{"Position": [1, 2, 3, 4], "Confidence": 0.5}]']
        ),
        max_size=14,
    ).map("".join),
)  # fmt: skip
BOXES = [{"bbox_2d": [1, 2, 3, 4], "label": "dog"}, {"bbox_2d": [5, 5, 9, 9], "label": "cat"}]
TRUTH = st.sampled_from(
    ["7", "12 cm", "B", "yes", "red", [0, 0, 9, 9], {"a": 1}, ["a", "b"], 0.5, "2019-05-01", BOXES, "None", None]
)
ENCODED = ("reasoning", "reasoning_ordered", "causal")  # with words in place of a sentence encoder
REWARD_OF = {
    name: make_reward(name, **({"encoder": "overlap"} if name in ENCODED else {}))
    for name in REWARDS
    if name != "judge"
}
SIDE = st.integers(0, 200)
SHARE = st.sampled_from([0, 0.3, 1.0])
LOWEST = {"length": -1.0, "overlong": -1.0, "repetition": -1.0, "ovd": -0.5}  # others never go below 0


@pytest.mark.parametrize("name", list(REWARDS))
@given(text=TEXT, truth=TRUTH, task=st.sampled_from(list(TASKS)))
def test_every_reward_takes_every_text_and_stays_in_range(name: str, text: str, truth: object, task: str):
    columns = {"answer": truth, "task": task, "options": ["x", "y"], "reference_steps": ["a b c"], "tools": ["f"]}
    reward = REWARD_OF.get(name) or make_reward(name)
    (value,) = reward([text], **{key: [column] for key, column in columns.items()}, mask=[None])
    low = LOWEST.get(name, 0.0)
    assert value is None or low <= value <= 1.0


LIST_REWARDS = ("detection", "ovd", "od_ap", "od_ap50")
COORDINATE = st.integers(0, 30)
ENTRY = st.fixed_dictionaries(
    {"bbox_2d": st.lists(COORDINATE, min_size=4, max_size=4)},
    optional={"label": st.sampled_from(["dog", "cat", ""]), "Confidence": st.sampled_from([0, 0.25, 0.5, 1])},
)


@pytest.mark.parametrize("name", LIST_REWARDS)
@given(entries=st.lists(ENTRY, max_size=6), right=st.lists(ENTRY, min_size=1, max_size=4), data=st.data())
def test_the_order_of_a_list_never_counts(name: str, entries: list, right: list, data: st.DataObject):
    mixed, turned = data.draw(st.permutations(entries)), data.draw(st.permutations(right))
    one = score(name, f"<answer>{json.dumps(entries)}</answer>", answer=right)
    assert one == score(name, f"<answer>{json.dumps(mixed)}</answer>", answer=turned)


@pytest.mark.parametrize("name", LIST_REWARDS)
@given(x=SIDE, y=SIDE, width=st.integers(1, 100), height=st.integers(1, 100), shift=st.integers(0, 100), sure=SHARE)
def test_a_better_box_in_a_list_never_scores_lower(
    name: str, x: int, y: int, width: int, height: int, shift: int, sure
):
    right = [{"bbox_2d": [x, y, x + width, y + height], "label": "dog"}, {"bbox_2d": [500, 0, 510, 9], "label": "cat"}]

    def value(d: int) -> float:
        moved = {"bbox_2d": [x + d, y, x + d + width, y + height], "label": "dog", "Confidence": sure}
        return score(name, f"<answer>{json.dumps([moved, right[1]])}</answer>", answer=right)

    assert value(0) >= value(shift) >= value(shift + 1)


@pytest.mark.parametrize("name", ["detection", "od_ap", "od_ap50"])
@given(entries=st.lists(ENTRY, max_size=4), right=st.lists(ENTRY, min_size=1, max_size=4), invented=st.integers(1, 30))
def test_invented_labels_never_help(name: str, entries: list, right: list, invented: int):
    right = [{**item, "label": item.get("label") or "dog"} for item in right]  # without labels nothing is invented
    extra = [{"bbox_2d": [0, 0, n, n], "label": f"thing {n}"} for n in range(1, invented + 1)]
    without, with_them = (
        score(name, f"<answer>{json.dumps(items)}</answer>", answer=right) for items in (entries, entries + extra)
    )
    assert with_them <= without
    if name != "detection" or len(entries) + invented > len(right):  # below that the missing boxes cost as much
        assert with_them < without or without == 0


@given(words=st.lists(st.sampled_from(["red", "ball", "the", "12", "cm"]), max_size=8), data=st.data())
def test_word_f1_does_not_see_the_order_and_is_one_only_for_the_same_words(words: list[str], data: st.DataObject):
    mixed = data.draw(st.permutations(words))
    value = score("word_f1", f"<answer>{' '.join(mixed)}</answer>", answer="the red ball")
    assert value == score("word_f1", f"<answer>{' '.join(words)}</answer>", answer="the red ball")
    assert (value == 1.0) == (sorted(word for word in words if word != "the") == ["ball", "red"])


@given(given=st.integers(0, 50), nearer=st.integers(0, 50), truth=st.integers(0, 50))
def test_a_nearer_count_never_earns_less(given: int, nearer: int, truth: int):
    one, other = (score("count_partial", f"<answer>{n}</answer>", answer=truth) for n in (given, nearer))
    if abs(nearer - truth) <= abs(given - truth):
        assert other >= one
    assert (one == 1.0) == (given == truth)


@given(numbers=st.lists(st.integers(0, 9), min_size=1, max_size=5), data=st.data())
@settings(max_examples=50, deadline=None)
def test_all_match_does_not_see_the_order(numbers: list[int], data: st.DataObject):
    mixed = data.draw(st.permutations(numbers))
    completion = f"<answer>{json.dumps(mixed)}</answer>"
    assert score("accuracy", completion, answer=numbers, method="all_match") == 1.0
    assert score("accuracy", completion, answer=[*numbers, 1], method="all_match") == 0.0


@given(x=SIDE, y=SIDE, width=st.integers(1, 100), height=st.integers(1, 100), shift=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_better_box_never_scores_lower(x: int, y: int, width: int, height: int, shift: int):
    truth = [x, y, x + width, y + height]
    for name in ("iou", "iou^2", "giou", "iou@0.5", "center"):
        values = [
            score(name, f"<answer>[{x + d}, {y}, {x + d + width}, {y + height}]</answer>", answer=truth)
            for d in (0, shift, shift + 1)
        ]
        assert values[0] == 1.0
        assert values == sorted(values, reverse=True)


@given(value=st.integers(-(10**30), 10**30), other=st.integers(-(10**30), 10**30))
@settings(max_examples=100, deadline=None)
def test_integers_are_equal_only_to_themselves(value: int, other: int):
    assert quantities_equal(parse_quantity(f"{value:,}"), parse_quantity(str(value)))
    assert quantities_equal(parse_quantity(str(other)), parse_quantity(str(value))) == (value == other)
