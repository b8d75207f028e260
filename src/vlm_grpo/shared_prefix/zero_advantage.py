"""Rows whose advantage is 0: neither their forward nor their backward changes anything, so they are skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs


class ZeroAdvantageRows:
    """The rows of a micro-batch that are not scored, and what is used in their place.

    Attributes:
        rows: (B,) of bool.
        entropy_stats: (2,), sum of the entropies of the scored tokens and how many these are.
    """

    def __init__(self, batch: RolloutBatch) -> None:
        self.rows = (batch.advantages == 0).reshape(len(batch), -1).all(dim=1)
        self._mask = batch.sampled_mask
        self._old = batch.old_sequence_logps if batch.old_logps is None else batch.old_logps
        self.entropy_stats = torch.zeros(2, device=batch.advantages.device)

    def fill_logprobs(self, scores: TokenLogprobs) -> TokenLogprobs:
        """Return the scores with the old log-probabilities in skipped rows: a ratio of 1, which cannot overflow."""
        scored = self._mask * ~self.rows[:, None]
        if scores.entropies is not None:
            self.entropy_stats = torch.stack([(scores.entropies.detach() * scored).sum(), scored.sum()]).float()
        old = self._old
        if old is None:
            return scores
        if old.ndim == 1:  # of whole sequences: the first token stands for all
            old = torch.nn.functional.pad(old[:, None], (0, scores.logps.size(1) - 1))
        return scores._replace(logps=torch.where(self.rows[:, None], old.to(scores.logps), scores.logps))


def correct_entropy(metrics: dict[str, list[float]], stats: Tensor) -> None:
    """Replace the latest entropy by the mean over the tokens scored on any process; remove it if none was."""
    total, count = stats.tolist()
    metrics["entropy"][-1:] = [total / count] if count else []
    if not metrics["entropy"]:
        del metrics["entropy"]
