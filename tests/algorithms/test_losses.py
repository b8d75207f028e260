"""Token losses and choices against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms.losses import LossInputs, gmpo, kl_cov, whole_completion
from vlm_grpo.algorithms.token_masks import clip_cov_mask, covariances, kl_cov_mask

ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
LOGPS = torch.tensor([[-0.5, -1.5, -2.5, -0.1]])
OLD = torch.tensor([[-0.6, -1.4, -2.0, -0.1]])
ALL = torch.ones(1, 4)


@pytest.mark.parametrize(("advantage", "weight"), [(1.0, 0.9672), (-1.0, 1.1052)])
def test_gmpo_clips_the_side_that_makes_the_step_larger(advantage: float, weight: float):
    """Log-ratios .6, -.6, .1: clipped to .4, -.6, .1 (mean -.0333) for A > 0, to .6, -.4, .1 (mean .1) for A < 0."""
    ratios = torch.tensor([[0.6, -0.6, 0.1, 9.0]])
    tokens = LossInputs(ratios, torch.zeros(1, 4), torch.tensor([[advantage]]), torch.tensor([[1, 1, 1, 0]]))
    assert torch.allclose(gmpo(tokens), torch.full((1, 4), -advantage * weight), atol=1e-4)


def test_a_completion_is_one_action():
    """Log-ratios .1, -.1, -.5, 0 sum to -.5: ratio .6065, clipped to .8 where that makes the loss larger."""
    for advantage, expected in ((1.0, -0.6065), (-1.0, 0.8)):
        tokens = LossInputs(LOGPS, OLD, torch.tensor([[advantage]]), ALL)
        assert torch.allclose(whole_completion(tokens), torch.full((1, 4), expected), atol=1e-4)


def test_covariances():
    """Means 0 and -1.15; a masked token counts nowhere."""
    assert torch.allclose(covariances(ADVANTAGES, LOGPS, ALL), torch.tensor([[0.65, -0.35, 1.35, -1.05]]), atol=1e-6)
    wider = [torch.cat([tensor, torch.full((1, 1), 7.0)], dim=1) for tensor in (ADVANTAGES, LOGPS)]
    found = covariances(*wider, torch.tensor([[1, 1, 1, 1, 0]]))
    assert torch.allclose(found[:, :4], torch.tensor([[0.65, -0.35, 1.35, -1.05]]), atol=1e-6)


def test_clip_cov_drops_the_token_of_high_covariance():
    """Losses -1.1052, -0.9048, 0.6065, 1.0 without the third: mean -0.2525."""
    chosen = clip_cov_mask(covariances(ADVANTAGES, LOGPS, ALL), ALL, seed=0)
    assert chosen.tolist() == [[False, False, True, False]]
    loss = -ADVANTAGES.masked_fill(chosen, 0.0) * (LOGPS - OLD).exp()
    assert loss.mean().item() == pytest.approx(-0.2525, abs=1e-4)


def test_kl_cov_adds_the_distance_of_the_highest():
    """A quarter of four tokens is the third, |log w| = 0.5: mean of the plain loss -0.1009 plus 0.5 / 4."""
    chosen = kl_cov_mask(covariances(ADVANTAGES, LOGPS, ALL), ALL, share=0.25)
    assert chosen.tolist() == [[False, False, True, False]]
    loss = kl_cov(LossInputs(LOGPS, OLD, ADVANTAGES, ALL, {"chosen": chosen}))
    assert loss.mean().item() == pytest.approx(0.0241, abs=1e-4)
    assert kl_cov(LossInputs(LOGPS, OLD, ADVANTAGES, ALL, {"chosen": ~ALL.bool()})).mean().item() == pytest.approx(
        -0.1009, abs=1e-4
    )


def test_a_random_choice_keeps_to_its_share_its_seed_and_its_bounds():
    values = torch.linspace(0, 6, 10_000).view(100, 100)
    mask = torch.ones(100, 100)
    mask[50:] = 0  # the values from 3 on
    chosen = clip_cov_mask(values, mask, seed=3, share=0.01)
    assert chosen.sum() == 50 and values[chosen].min() >= 1 and values[chosen].max() < 3.01
    assert torch.equal(chosen, clip_cov_mask(values, mask, seed=3, share=0.01))
    assert not torch.equal(chosen, clip_cov_mask(values, mask, seed=4, share=0.01))
    assert not clip_cov_mask(torch.zeros(2, 2), torch.ones(2, 2), seed=0).any()  # nothing between the bounds


def test_the_highest_are_scored_tokens():
    values = torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert kl_cov_mask(values, mask, share=0.4).nonzero().tolist() == [[1, 0], [1, 1]]
    assert kl_cov_mask(values, torch.zeros(2, 4)).sum() == 0
