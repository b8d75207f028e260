"""Covariances and token selections against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.algorithms.token_mask import clip_cov_mask, covariances, kl_cov_loss, kl_cov_mask

ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
LOGPS = torch.tensor([[-0.5, -1.5, -2.5, -0.1]])
OLD = torch.tensor([[-0.6, -1.4, -2.0, -0.1]])
ALL = torch.ones(1, 4)


def test_covariances():
    """Means 0 and -1.15; a masked token counts nowhere."""
    assert torch.allclose(covariances(ADVANTAGES, LOGPS, ALL), torch.tensor([[0.65, -0.35, 1.35, -1.05]]), atol=1e-6)
    wider = [torch.cat([tensor, torch.full((1, 1), 7.0)], dim=1) for tensor in (ADVANTAGES, LOGPS)]
    found = covariances(*wider, torch.tensor([[1, 1, 1, 1, 0]]))
    assert torch.allclose(found[:, :4], torch.tensor([[0.65, -0.35, 1.35, -1.05]]), atol=1e-6)


def test_clip_cov_drops_the_token_of_high_covariance():
    """Losses -1.1052, -0.9048, 0.6065, 1.0 without the third: mean -0.2525."""
    selected = clip_cov_mask(covariances(ADVANTAGES, LOGPS, ALL), ALL, seed=0)
    assert selected.tolist() == [[False, False, True, False]]
    loss = -ADVANTAGES.masked_fill(selected, 0.0) * (LOGPS - OLD).exp()
    assert loss.mean().item() == pytest.approx(-0.2525, abs=1e-4)


def test_kl_cov_adds_the_distance_of_the_highest():
    """A quarter of four tokens is the third, |log w| = 0.5: mean of the plain loss -0.1009 plus 0.5 / 4."""
    selected = kl_cov_mask(covariances(ADVANTAGES, LOGPS, ALL), ALL, share=0.25)
    assert selected.tolist() == [[False, False, True, False]]
    loss = kl_cov_loss(LossInputs(LOGPS, OLD, ADVANTAGES, ALL, token_mask=selected))
    assert loss.mean().item() == pytest.approx(0.0241, abs=1e-4)
    plain = kl_cov_loss(LossInputs(LOGPS, OLD, ADVANTAGES, ALL, token_mask=~ALL.bool()))
    assert plain.mean().item() == pytest.approx(-0.1009, abs=1e-4)


def test_a_random_choice_keeps_to_its_share_its_seed_and_its_bounds():
    values = torch.linspace(0, 6, 10_000).view(100, 100)
    mask = torch.ones(100, 100)
    mask[50:] = 0  # the values from 3 on
    selected = clip_cov_mask(values, mask, seed=3, share=0.01)
    assert selected.sum() == 50 and values[selected].min() >= 1 and values[selected].max() < 3.01
    assert torch.equal(selected, clip_cov_mask(values, mask, seed=3, share=0.01))
    assert not torch.equal(selected, clip_cov_mask(values, mask, seed=4, share=0.01))
    assert not clip_cov_mask(torch.zeros(2, 2), torch.ones(2, 2), seed=0).any()  # nothing between the bounds


def test_the_highest_are_scored_tokens():
    values = torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert kl_cov_mask(values, mask, share=0.4).nonzero().tolist() == [[1, 0], [1, 1]]
    assert kl_cov_mask(values, torch.zeros(2, 4)).sum() == 0
