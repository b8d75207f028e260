"""LUFFY inside a training: demonstrations in place of completions, and what is logged and weighted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.demonstrations import (
    build,
    by_text,
    losses_of,
    row_of,
    rows,
    texts_of,
    trained,
)
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.engines.transformers import TransformersEngine
from vlm_grpo.shared_prefix.zero_advantage import ZeroAdvantageRows
from vlm_grpo.trainers.logprobs import TokenLogprobs


@pytest.mark.parametrize(("count", "name"), [(1, "luffy"), (2, "luffy"), (1, "srft")])
def test_the_last_rows_of_a_group_are_the_experts(count: int, name: str, tiny_model: Path, tmp_path: Path):
    """Rewarded, compared with those of the policy, and ended like them; one prompt has one answer, one has two."""
    trainer = build(name, tiny_model, tmp_path, algorithm_options={"expert_rows": count}, shuffle_dataset=False)
    (inputs,) = losses_of(trainer)
    texts, marks = texts_of(trainer, inputs), inputs["is_expert"][:, 0]
    for group in range(2):
        part = slice(4 * group, 4 * group + 4)
        known = [f"{answer}<|im_end|>" for answer in rows()[row_of(inputs["samples"][4 * group])]["expert"]]
        number = min(count, len(known))
        assert marks[part].tolist() == [False] * (4 - number) + [True] * number
        assert set(texts[part][4 - number :]) <= set(known) and len(set(texts[part][4 - number :])) == number
        plain = trainer._tokenizer.batch_decode(inputs["completion_ids"][part], skip_special_tokens=True)
        rewards = torch.tensor(by_text([[{"content": text}] for text in plain]))
        assert torch.allclose(inputs["advantages"][part], rewards - rewards.mean(), atol=1e-5)


def test_statistics_are_those_of_what_was_sampled(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Scripted completions of 2, 3 and 4 tokens, none with an end; an answer in place of the one of 5."""
    trainer = trained("luffy", tiny_model, tmp_path, shuffle_dataset=False)
    log, rewards = trainer.state.log_history[0], torch.tensor(list(trainer._logs["rewards"]["by_text"])).view(2, 4)
    lengths = [log[f"completions/{kind}_length"] for kind in ("min", "mean", "max")]
    assert lengths == [2, 3, 4] and log["completions/clipped_ratio"] == 1
    assert log["completions/mean_terminated_length"] == 0
    assert log["reward"] == log["rewards/by_text/mean"] == pytest.approx(rewards[:, :3].mean().item())
    assert log["reward_std"] == pytest.approx(rewards[:, :3].std().item(), abs=1e-5)
    assert log["expert/reward"] == pytest.approx(rewards[:, 3].mean().item()) and log["expert/share"] == 0.25
    assert log["rewards/by_text/mean"] != pytest.approx(rewards.mean().item(), abs=1e-3)


def test_entropy_and_kl_are_those_of_what_was_sampled(tiny_model: Path, tmp_path: Path):
    """On both paths; the second step is off the reference."""
    trainer = build("luffy", tiny_model, tmp_path, beta=0.1, max_steps=2, learning_rate=1e-2)
    logged: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.ranks.masked_mean = lambda values, mask: logged.append((values, mask)) or 0.0
    first, second = losses_of(trainer)
    for (_, mask), inputs in zip(logged, (first, first, second, second), strict=True):
        assert torch.equal(mask, inputs["completion_mask"] * ~inputs["is_expert"])
    kl = logged[2][0]
    assert kl[second["is_expert"][:, 0]].abs().sum() == 0 and kl[~second["is_expert"][:, 0]].sum() > 1e-3
    ones, is_expert = torch.ones(2, 3), torch.tensor([[True], [False]])
    silence = ZeroAdvantageRows(RolloutBatch(ones, ones, ones, ones, torch.ones(2), is_expert=is_expert))
    silence.fill_logprobs(TokenLogprobs(torch.zeros(2, 3), torch.tensor([[9.0] * 3, [1.0, 2.0, 3.0]]), None))
    assert silence.entropy_stats.tolist() == [6, 3]


def test_rows_of_the_expert_are_not_sampled(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    generate = TransformersEngine.generate
    monkeypatch.setattr(
        TransformersEngine,
        "generate",
        lambda self, prompts, **options: (sizes.append(len(prompts)), generate(self, prompts, **options))[1],
    )
    for options, expected in (({}, 6), ({"expert_rows": 3}, 5)):  # the first two rows have one and two answers
        trained("luffy", tiny_model, tmp_path, algorithm_options=options, shuffle_dataset=False)
        assert sizes == [expected]
        sizes.clear()


class KnownLogprobs:
    """An engine that also returns log-probabilities, as vLLM does, far from those of the policy."""

    needs_whole_groups, has_own_weights = False, True

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, prompts: Any, **options: Any) -> Generation:
        ids = self.engine.generate(prompts, **options).ids
        return Generation(ids, [[-1.0] * len(row) for row in ids])


def test_demonstrations_stay_out_of_the_sampler_correction(tiny_model: Path, tmp_path: Path):
    """No engine has sampled them: their weight is 1; the weights of sampled tokens are not."""
    trainer = build("luffy", tiny_model, tmp_path, shuffle_dataset=False)
    trainer.engine = trainer.collector.engine = KnownLogprobs(trainer.engine)
    (inputs,) = losses_of(trainer)
    weights, is_expert = inputs["importance_sampling_ratio"], inputs["is_expert"][:, 0]
    assert is_expert.sum() == 2 and (weights[is_expert] == 1).all()
    assert (weights[~is_expert] != 1).any(dim=1).all()
