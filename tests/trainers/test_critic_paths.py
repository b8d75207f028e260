"""PPO's updates on every path: micro-batches, packing, adapters, and rollouts of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.support.training import image_rows, settings
from tests.support.values import FAST, head_of, values_of
from tests.trainers.test_algorithms import SAME_LENGTH, by_text
from tests.trainers.test_distributed import write_data
from vlm_grpo.data import load_dataset
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


@pytest.mark.parametrize("change", ["micro_batches", "plain_path", "token_budget", "cut", "lora"])
def test_updates_do_not_depend_on_how_they_are_computed(change: str, tiny_model: Path, tmp_path: Path):
    """Two rollouts of two updates. With LoRA: also of two micro-batches each, the head beside the adapter."""
    base = {"max_steps": 4, "num_iterations": 2, "steps_per_generation": 1, **FAST, **SAME_LENGTH}
    base["per_device_train_batch_size"] = 16
    halves = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 2}
    ways = {"plain_path": {"shared_prefix": "off"}, "token_budget": {"max_tokens_per_forward": 200}, "cut": {}}
    other = ways.get(change, halves)
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.0) if change == "lora" else None
    runs = []
    for options in (base, {**base, **other}):
        args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
        run = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(16), peft_config=adapter)
        run.splitter.parts = 4 if change == "cut" and runs else 1  # as after a forward that found no memory
        run.train()
        runs.append(run)
    assert head_of(runs[0]).abs().max() > 1e-3
    assert (head_of(runs[0]) - head_of(runs[1])).abs().max() < 1e-3
    for one, two in zip(*(run.state.log_history[:4] for run in runs), strict=True):
        for name in ("value_loss", "grad_norm", "explained_variance"):
            assert two.get(name, 0.0) == pytest.approx(one.get(name, 0.0), rel=2e-3, abs=1e-4), name


def agent(prompts: list, trainer: Any) -> dict[str, Any]:
    """Completions of five tokens, of which the third and fourth are a tool's answer."""
    encoded = trainer.processing_class.apply_chat_template(
        prompts, tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]
    ids = [[20 + row % 4, 30, 40, 41, 50 + row % 3] for row in range(len(prompts))]
    rows = {"prompt_ids": encoded, "completion_ids": ids, "logprobs": [[-6.0] * 5] * len(ids)}
    return {**rows, "env_mask": [[1, 1, 0, 0, 1]] * len(ids)}


@pytest.mark.parametrize(("coefficient", "kind"), [(0.0, "shared"), (0.0, "own"), (3.0, "shared")])
@pytest.mark.parametrize("updates", [{"num_iterations": 2}, {}], ids=["off_policy", "on_policy"])
def test_a_tools_answer_is_stepped_over_on_trls_own_path(
    updates: dict, coefficient: float, kind: str, tiny_model: Path, tmp_path: Path
):
    """The first row's values by transformers' own forward, with its images."""
    write_data(tmp_path)
    rows = load_dataset(str(tmp_path / "a.jsonl"), image_folders=str(tmp_path))
    options = {
        "max_steps": 4,
        "kl_reward_coef": coefficient,
        "algorithm_options": {"lam": 1.0, "value_model": kind},
        **FAST,
        **updates,
    }
    args = VLMGRPOConfig.of(
        "ppo", **settings(tmp_path, per_device_train_batch_size=8, steps_per_generation=1, **options)
    )
    trainer = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=rows, rollout_func=agent)
    seen = []
    generate = trainer._generate_and_score_completions

    def watched(inputs: list) -> dict[str, Any]:
        output = generate(inputs)
        grids = output["image_grid_thw"][: output["num_images"][0]]
        ids = torch.cat([output["prompt_ids"][0][output["prompt_mask"][0].bool()], output["completion_ids"][0]])
        fields = {"pixel_values": output["pixel_values"][: grids.prod(dim=1).sum()], "image_grid_thw": grids}
        kinds = (ids == trainer.model.config.image_token_id).long()
        seen.append(
            (output, values_of(trainer, {"input_ids": ids[None], "mm_token_type_ids": kinds[None], **fields}, 5))
        )
        return output

    trainer._generate_and_score_completions = watched
    trainer.train()
    last, values = seen[-1]
    mask = torch.tensor([1, 1, 0, 0, 1])
    assert torch.allclose(last["values"][0], values, atol=1e-5) and values.std() > 1e-4
    assert torch.equal(last["tool_mask"], mask.expand(8, 5))
    rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))[:, None]
    penalty = 0 if not coefficient else 3.0 * trainer.kl.kl.flip(1).cumsum(dim=1).flip(1)
    assert torch.allclose(last["returns"], (rewards - penalty) * mask, atol=1e-4)
    assert last["advantages"][:, 2:4].abs().max() == 0 and last["advantages"][:, :2].abs().min() > 0
    if coefficient:
        assert trainer.kl.kl[:, 2:4].abs().max() == 0 and trainer.kl.kl.abs().max() > 1e-4
