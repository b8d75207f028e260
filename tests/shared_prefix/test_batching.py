"""Whole groups in the order of a rollout and in the forwards of a pass."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_grpo.rollouts.batch import RolloutBatch, prompt_groups
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.shared_prefix.batching import split_into_forwards


def alone(wanted: int, groups: int) -> tuple[int, int]:
    return wanted, groups


def test_runs_are_neighbours_with_the_same_prompt():
    one, two = EncodedPrompt([1], "one"), EncodedPrompt([2], "two")
    assert prompt_groups([one, one, two, one]) == [[0, 1], [2], [3]]


def test_shuffling_keeps_groups_whole_and_columns_together():
    prompts = [EncodedPrompt([number], str(number)) for number in range(6)]
    samples = [prompt for prompt in prompts for _ in range(3)]
    ids = torch.zeros(18, 1, dtype=torch.long)
    others = {"words": [str(row) for row in range(18)], "scalar": torch.tensor(7), "nothing": None}
    batch = RolloutBatch(ids, ids, ids, ids, advantages=torch.arange(18), prompts=samples, others=others)
    torch.manual_seed(0)
    shuffled = batch.shuffle_groups()
    numbers = shuffled.advantages.tolist()
    assert sorted(numbers) == list(range(18)) and numbers != list(range(18))
    assert all(numbers[row : row + 3] == [numbers[row], numbers[row] + 1, numbers[row] + 2] for row in range(0, 18, 3))
    assert [samples[number] for number in numbers] == shuffled.prompts
    assert [str(number) for number in numbers] == shuffled.others["words"]
    assert shuffled.others["scalar"] == 7 and shuffled.others["nothing"] is None


def test_forwards_hold_whole_groups_within_the_budget():
    prompts = [EncodedPrompt([0] * length, str(length)) for length in (10, 20, 30, 40)]
    samples = [prompt for prompt in prompts for _ in range(2)]
    assert split_into_forwards(samples, [5] * 8, 100, alone) == [
        [0, 1, 2, 3, 4, 5],
        [6, 7],
    ]  # 20 + 30 + 40 and 50 tokens
    assert split_into_forwards(samples, [5] * 8, 1000, alone) == [list(range(8))]
    assert split_into_forwards(samples, [5] * 8, 30, alone) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]  # two of them are too long


def test_all_processes_run_equally_many_forwards():
    samples = [
        prompt
        for prompt in (EncodedPrompt([0], "a"), EncodedPrompt([1], "b"), EncodedPrompt([2], "c"))
        for _ in range(2)
    ]
    assert (
        len(split_into_forwards(samples, [5] * 6, 1000, lambda wanted, groups: (2, groups))) == 2
    )  # another process needs two
    assert (
        len(split_into_forwards(samples, [5] * 6, 1, lambda wanted, groups: (wanted, 2))) == 2
    )  # another one has two groups


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 120))
def test_every_row_is_in_one_forward_and_no_forward_is_too_long_without_need(lengths: list[int], budget: int):
    samples = [EncodedPrompt([0] * length, "") for length in lengths]
    forwards = split_into_forwards(samples, [1] * len(samples), budget, alone)
    assert [row for forward in forwards for row in forward] == list(range(len(samples)))
    assert all(len(forward) == 1 or sum(lengths[row] + 1 for row in forward) <= budget for forward in forwards)
