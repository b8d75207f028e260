"""Log-probabilities of completions under a model, for the loss, the old policy and the reference alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_per_token, collate_visual, missing_dummies
from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs


class PaddedRows(NamedTuple):
    """Samples with their (B, P + C) token ids and attention mask."""

    samples: Sequence[EncodedPrompt]
    input_ids: Tensor
    attention_mask: Tensor


def model_inputs(
    samples: Sequence[EncodedPrompt],
    input_ids: Tensor,
    attention_mask: Tensor,
    completion: int,
    visual: Callable[[Sequence[EncodedPrompt]], dict[str, Any]] = collate_visual,
) -> dict:
    """Forward arguments of one chunk of rows, on the host except for what was given.

    Every key that the processor returned reaches the model: none is dropped because a list does not name it.
    """
    prompt = input_ids.size(1) - completion
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        **visual(samples),
        **collate_per_token(samples, prompt, completion),
    }


def padded_logprobs(
    model: nn.Module,
    samples: Sequence[EncodedPrompt],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    completion: int,
    chunk: int,
    place: Callable[[Mapping[str, Any]], dict[str, Any]],
    autocast: Callable[[], AbstractContextManager],
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
    blanks: Mapping[str, EncodedPrompt] | None = None,
    visual: Callable[[Sequence[EncodedPrompt]], dict[str, Any]] = collate_visual,
    on_values: Callable[[Tensor], None] | None = None,
) -> TokenLogprobs:
    """Score the last `completion` tokens of (B, P + C) rows, `chunk` rows at a time.

    Pixels wait on the host; `place` moves one chunk's tensors to the device. The model must carry TRL's fused LM
    head, which returns log-probabilities instead of logits. `blanks` maps kinds of media to prompts: a chunk without
    one gets that prompt as one more row, whose scores are thrown away, so that its vision tower runs as on the other
    processes. `visual` gives the visual forward arguments of some rows. `on_values` is handed the (B, C) values that a
    model with a value head gives the states before the tokens.
    """
    extra = {"output_router_logits": True} if compute_aux_loss else {}
    logps, entropies, aux_losses, values = [], [], [], []
    for start in range(0, input_ids.size(0), chunk):
        rows = PaddedRows(
            samples[start : start + chunk], input_ids[start : start + chunk], attention_mask[start : start + chunk]
        )
        count = len(rows.samples)
        for blank in missing_dummies(rows.samples, blanks):
            rows = with_dummy_row(rows, blank, completion)
        inputs = place(model_inputs(*rows, completion, visual))
        labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
        labels[:, :-completion] = -100
        with autocast():
            output = model(**inputs, **extra, labels=labels, fused_lm_head=True)
        logps.append(output.log_probs[:count, -completion:])
        entropies.append(output.entropy[:count, -completion:] if compute_entropy else None)
        aux_losses.append(output.aux_loss if compute_aux_loss else None)
        if on_values is not None:
            values.append(output.token_values[:count, -completion - 1 : -1])
    if on_values is not None:
        on_values(torch.cat(values))
    return TokenLogprobs(
        logps=torch.cat(logps),
        entropies=torch.cat(entropies) if compute_entropy else None,
        aux_loss=torch.stack(aux_losses).mean() if compute_aux_loss else None,
    )


def with_dummy_row(rows: PaddedRows, blank: EncodedPrompt, completion: int) -> PaddedRows:
    """The rows and one more: the blank prompt, right before an empty completion. All are padded to its length."""
    missing = max(0, len(blank.input_ids) + completion - rows.input_ids.size(1))
    ids, mask = (nn.functional.pad(tensor, (missing, 0)) for tensor in (rows.input_ids, rows.attention_mask))
    row, seen = torch.zeros_like(ids[:1]), torch.zeros_like(mask[:1])
    place = slice(ids.size(1) - completion - len(blank.input_ids), ids.size(1) - completion)
    row[0, place] = torch.tensor(blank.input_ids, device=row.device)
    seen[0, place] = 1
    return PaddedRows([*rows.samples, blank], torch.cat([ids, row]), torch.cat([mask, seen]))
