"""SRFT and HPT inside a training: which completions are correct, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.demonstrations import (
    ANSWERS,
    LIMIT,
    build,
    by_text,
    losses_of,
    nll_of,
    row_of,
    rows,
    texts_of,
)
from tests.support.training import image_rows, settings
from vlm_grpo.algorithms.hpt import replace_completions
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


def test_srft_sees_what_is_right(tiny_model: Path, tmp_path: Path):
    """Right is a reward above the bar, wrong any other; both have a loss though all rewards of a group are equal."""
    bars = {}
    for bar in (0.45, 2.0):
        trainer = build("srft", tiny_model, tmp_path, algorithm_options={"correct_above": bar}, shuffle_dataset=False)
        (inputs,) = losses_of(trainer)
        rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))
        assert torch.equal(inputs["is_correct"][:, 0], torch.where(rewards > bar, 1.0, -1.0))
        bars[bar] = trainer.state.log_history[0]["grad_norm"]
    assert bars[0.45] != bars[2.0]
    flat = build("srft", tiny_model, tmp_path, data=image_rows(8).add_column("expert", [["red"]] * 8))
    flat.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    (inputs,) = losses_of(flat)
    assert inputs["advantages"].abs().sum() == 0 and flat.state.log_history[0]["grad_norm"] > 0
    assert not flat._skips_zero_advantage


@pytest.mark.parametrize("other", [0, 4])  # the fifth row has no answer
def test_hpt_learns_from_the_expert_where_nothing_is_right(
    other: int, same_completions: None, tiny_model: Path, tmp_path: Path
):
    """Rewards .9 .1 .1 .1 reinforce the one prompt; zeros leave the answer alone of the other, if there is one."""
    trainer = build(
        "hpt", tiny_model, tmp_path, data=rows().select([1, other, 2, 3]), algorithm_options={}, shuffle_dataset=False
    )
    trainer.reward_funcs = [lambda completions, **columns: [0.9, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]]
    (inputs,) = losses_of(trainer)
    found = {row_of(inputs["samples"][start]): slice(start, start + 4) for start in (0, 4)}
    assert sorted(inputs["advantages"][found[1]].tolist()) == pytest.approx([-0.2, -0.2, -0.2, 0.6])
    is_known = other == 0
    part = found[other]
    assert inputs["advantages"][part].tolist() == [0, 0, 0, float(is_known)]
    assert inputs["is_expert"][part, 0].tolist() == [False, False, False, is_known]
    assert inputs["completion_mask"][part].sum(dim=1).tolist()[:3] == ([0, 0, 0] if is_known else [2, 3, 4])
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
    assert trainer.state.log_history[0]["expert/share_of_prompts"] == (0.5 if is_known else 0)
    if is_known:
        assert texts_of(trainer, inputs)[part][3] == f"{ANSWERS[0]}<|im_end|>"


def test_a_prompt_that_hpt_imitates_weighs_as_much_as_any(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Only imitation: the loss is the mean over prompts of the NLL of their answers, over the longest that can be."""
    data = image_rows(8).add_column("expert", [["red circle."]] * 8)
    trainer = build(
        "hpt", tiny_model, tmp_path, data=data, algorithm_options={"correct_above": 5}, shuffle_dataset=False
    )
    trainer.train()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    expected = [nll_of(model, processor, data[number], "red circle.<|im_end|>") for number in range(2)]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(map(sum, expected)) / 2 / LIMIT, abs=1e-4)


def test_the_reward_that_decides_can_be_named(tiny_model: Path, tmp_path: Path):
    def other(completions: list, **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    args = settings(tmp_path, per_device_train_batch_size=8, max_completion_length=LIMIT)
    for wanted, index in ((None, 0), ("other", 1)):
        made = VLMGRPOConfig.of("hpt", algorithm_options={"correct_reward": wanted}, **args)
        trainer = VLMGRPOTrainer(str(tiny_model), [by_text, other], made, train_dataset=rows())
        assert trainer.algorithm.correctness.index == index
    made = VLMGRPOConfig.of("hpt", algorithm_options={}, **args)
    trainer = VLMGRPOTrainer(str(tiny_model), ["format", by_text], made, train_dataset=rows())
    assert trainer.algorithm.correctness.index == 1  # a form is not an answer
    made = VLMGRPOConfig.of("hpt", algorithm_options={"correct_reward": "acuracy"}, **args)
    with pytest.raises(ValueError, match="correct_reward must be one of by_text, other, got 'acuracy'"):
        VLMGRPOTrainer(str(tiny_model), [by_text, other], made, train_dataset=rows())


def test_replaced_rows_have_no_past():
    """A longer answer widens every tensor of tokens; weights of the sampler are 1, by token or by completion."""
    output = RolloutBatch(
        prompt_ids=torch.ones(2, 1),
        prompt_mask=torch.ones(2, 1),
        completion_ids=torch.tensor([[1, 2], [3, 4]]),
        completion_mask=torch.ones(2, 2, dtype=torch.long),
        old_logps=torch.full((2, 2), -5.0),
        importance_sampling_ratio=torch.full((2, 1), 0.5),
        advantages=torch.tensor([0.5, -0.5]),
    )
    replace_completions(output, {1: [7, 8, 9]}, [0], pad=0)
    assert output.completion_ids.tolist() == [[1, 2, 0], [7, 8, 9]]
    assert output.completion_mask.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert output.old_logps.tolist() == [[-5, -5, 0], [0, 0, 0]]
    assert output.importance_sampling_ratio.tolist() == [[0.5], [1.0]]
    assert output.advantages.tolist() == [0, 1] and output.is_expert.tolist() == [[False], [True]]
