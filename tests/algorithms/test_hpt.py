"""HPT against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tests.algorithms.test_off_policy import EXPERT, tokens
from vlm_grpo.algorithms.hpt import hpt_loss, needs_sft


def test_hpt_chooses_for_each_prompt():
    correct = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    assert needs_sft(correct).tolist() == [True, False, False]
    assert needs_sft(correct, 0.25).tolist() == [True, True, False]


def test_hpt_imitates_or_clips():
    """Ratios 1.8 and .2 of sampled tokens are clipped at 1.2 for A > 0 only; an expert's row has NLL times weight."""
    assert hpt_loss(tokens([0.9, 0.1])).tolist()[0] == pytest.approx([-1.2, -0.2])
    assert hpt_loss(tokens([0.9, 0.1]), hpt_clip=0.5).tolist()[0] == pytest.approx([-1.5, -0.2])
    given = {**EXPERT, "loss_weight": torch.tensor([[4.0]])}
    assert hpt_loss(tokens([0.9, 0.1], **given)).tolist()[0] == pytest.approx([0.4214, 9.2103], abs=1e-4)
