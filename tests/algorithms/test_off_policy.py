"""What losses with demonstrations have in common."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms.hpt import hpt_loss
from vlm_grpo.algorithms.losses import LossInputs
from vlm_grpo.algorithms.luffy import luffy_loss, srft_loss

EXPERT = {"is_expert": torch.tensor([[True]])}


def tokens(chances: list[float], **changes: object) -> LossInputs:
    """Return one completion with these probabilities, all sampled with a probability of a half."""
    logps = torch.tensor([chances]).log().requires_grad_()
    given = {
        "old_logps": torch.full_like(logps, 0.5).log(),
        "advantages": torch.ones(1, 1),
        "mask": torch.ones_like(logps),
    }
    return LossInputs(logps=logps, **{**given, **changes})


@pytest.mark.parametrize("objective", [luffy_loss, srft_loss, hpt_loss])
@pytest.mark.parametrize("marks", [{}, EXPERT])
def test_a_fully_masked_row_is_never_nan(objective: object, marks: dict):
    row = tokens([0.5, 0.1], mask=torch.zeros(1, 2), entropies=torch.ones(1, 2), **marks)
    loss = (objective(row) * row.mask).sum()
    loss.backward()
    assert loss.item() == 0 and row.logps.grad.abs().sum() == 0
