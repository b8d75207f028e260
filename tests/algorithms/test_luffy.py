"""LUFFY and SRFT against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tests.algorithms.test_off_policy import EXPERT, tokens
from vlm_grpo.algorithms import advantages
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.algorithms.luffy import luffy_loss, shaped, srft_loss, srft_weights

CHANCES = torch.tensor([0.9, 0.5, 0.1, 0.01])


def test_luffy_takes_the_mean_over_sampled_and_expert():
    assert advantages("luffy", [0, 1, 0, 1], 4).tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_luffy_shapes_the_experts_probability():
    assert shaped(CHANCES.log(), 0.1).tolist() == pytest.approx([0.9, 0.8333, 0.5, 0.0909], abs=1e-4)
    loss = luffy_loss(tokens([0.5, 0.1], advantages=torch.tensor([[2.0]]), **EXPERT))
    assert loss.tolist()[0] == pytest.approx([-1.6667, -1.0], abs=1e-4)
    assert luffy_loss(tokens([0.5, 0.1], **EXPERT), luffy_gamma=0.3).tolist()[0] == pytest.approx([-0.625, -0.25])


def test_luffy_does_not_clip_what_was_sampled():
    """Ratios 1.8 and 0.2; the weight of an expert's token does not depend on the old policy."""
    assert luffy_loss(tokens([0.9, 0.1])).tolist()[0] == pytest.approx([-1.8, -0.2])
    assert luffy_loss(tokens([0.9], old_logps=torch.tensor([[-200.0]]), **EXPERT)).item() == pytest.approx(-0.9)


def test_an_unlikely_expert_token_has_a_gradient_and_no_nan():
    """d(p / (p + .1)) / d log p = .1 p / (p + .1)^2; the branch that is not taken adds nothing, though it overflows."""
    row = tokens([0.01], old_logps=torch.tensor([[-1000.0]]), **EXPERT)
    luffy_loss(row).sum().backward()
    assert row.logps.grad.item() == pytest.approx(-0.001 / 0.0121, rel=1e-4)


@pytest.mark.parametrize(("entropy", "imitated", "reinforced"), [(1.0, 0.1839, 0.2718), (0.5, 0.3033, 0.1649)])
def test_srft_weighs_by_entropy(entropy: float, imitated: float, reinforced: float):
    weights = srft_weights(torch.tensor(entropy))
    assert [weight.item() for weight in weights] == pytest.approx([imitated, reinforced], abs=1e-4)


def test_srft_loss_of_each_kind_of_row():
    """H is the mean of .5 and 1.5, a third token is masked. NLL of a half is .6931; f(.5) = .8333."""
    half = torch.full((4, 3), 0.5).log()
    rows = LossInputs(
        logps=half,
        old_logps=half,
        advantages=torch.tensor([[1.0], [1.0], [1.0], [1.0]]),
        mask=torch.tensor([[1, 1, 0]]).expand(4, 3),
        is_expert=torch.tensor([[True], [False], [False], [False]]),
        is_correct=torch.tensor([[1.0], [1.0], [-1.0], [0.0]]),
        entropies=torch.tensor([[0.5, 1.5, 99.0]]).expand(4, 3),
    )
    expected = [0.1839 * 0.6931 - 0.8333, 0.2718 * 0.6931, -0.6931, 0.0]
    assert srft_loss(rows)[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    changed = srft_loss(rows, srft_sft=1.0, srft_rl=0.2)[:, 0].tolist()
    assert changed == pytest.approx([0.3679 * 0.6931 - 0.8333, 0.5437 * 0.6931, -0.6931, 0.0], abs=1e-4)
