"""Log-probabilities of completions under a model, for the loss, the old policy and the reference alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_grpo.trainers.rollout import Sample, collate_per_token, collate_visual


class TokenScores(NamedTuple):
    """(B, C) log-probabilities, (B, C) entropies or None, and the router's load-balancing loss or None."""

    logps: Tensor
    entropies: Tensor | None
    aux_loss: Tensor | None


def model_inputs(samples: Sequence[Sample], input_ids: Tensor, attention_mask: Tensor, completion: int) -> dict:
    """Forward arguments of one chunk of rows, on the host except for what was given.

    Every key that the processor returned reaches the model: none is dropped because a list does not name it.
    """
    prompt = input_ids.size(1) - completion
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        **collate_visual(samples),
        **collate_per_token(samples, prompt, completion),
    }


def token_scores(
    model: nn.Module,
    samples: Sequence[Sample],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    completion: int,
    chunk: int,
    place: Callable[[Mapping[str, Any]], dict[str, Any]],
    autocast: Callable[[], AbstractContextManager],
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
) -> TokenScores:
    """Score the last `completion` tokens of (B, P + C) rows, `chunk` rows at a time.

    Pixels wait on the host; `place` moves one chunk's tensors to the device. The model must carry TRL's fused LM
    head, which returns log-probabilities instead of logits.
    """
    extra = {"output_router_logits": True} if compute_aux_loss else {}
    outputs = []
    for start in range(0, input_ids.size(0), chunk):
        rows = slice(start, start + chunk)
        ids, mask = input_ids[rows], attention_mask[rows]
        inputs = place(model_inputs(samples[rows], ids, mask, completion))
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-completion] = -100
        with autocast():
            outputs.append(model(**inputs, **extra, labels=labels, fused_lm_head=True))
    return TokenScores(
        logps=torch.cat([out.log_probs[:, -completion:] for out in outputs]),
        entropies=torch.cat([out.entropy[:, -completion:] for out in outputs]) if compute_entropy else None,
        aux_loss=torch.stack([out.aux_loss for out in outputs]).mean() if compute_aux_loss else None,
    )
