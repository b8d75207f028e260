"""Log-probabilities of completions from packed rows: the same numbers as `objective.token_scores`, for less work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vlm_grpo.trainers.hotpath.layout import Layout, Packed, pack
from vlm_grpo.trainers.objective import TokenScores
from vlm_grpo.trainers.rollout import Sample, collate_visual

# An attention mask of four dimensions is taken as it is; the packed attention function does not look at it.
NO_MASK_SHAPE = (1, 1, 1, 1)


def backbone(model: nn.Module) -> nn.Module:
    """The model below its head, also inside an adapter."""
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    return unwrapped.base_model


def head_sees_scored_only(model: nn.Module) -> None:
    """Let the head project only the positions of a packed row that predict something."""

    def select(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        layout: Layout | None = kwargs.get("packed")
        if layout is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden[:, layout.scored.to(hidden.device)]
        return output

    backbone(model).register_forward_hook(select, with_kwargs=True)


def prompt_positions(model: nn.Module, sample: Sample) -> Tensor:
    """Positions of a prompt's tokens, (1, P), or (3, P) where the family has mRoPE, as its forward computes them."""
    index = getattr(backbone(model), "get_rope_index", None)
    count = len(sample.input_ids)
    if index is None:
        return torch.arange(count)[None]
    if not sample.visual:
        return torch.arange(count).expand(3, -1)
    fields = {**sample.visual, **{name: torch.tensor([values]) for name, values in sample.per_token.items()}}
    taken = set(inspect.signature(index).parameters)
    positions, _ = index(torch.tensor([sample.input_ids]), **{k: v for k, v in fields.items() if k in taken})
    return positions[:, 0]


def completions_of(input_ids: Tensor, attention_mask: Tensor, completion: int) -> list[list[int]]:
    """The tokens of each row's completion without padding."""
    lengths = attention_mask[:, -completion:].sum(dim=1).tolist()
    return [row[:length] for row, length in zip(input_ids[:, -completion:].tolist(), lengths, strict=True)]


def packed_scores(
    model: nn.Module,
    samples: Sequence[Sample],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    completion: int,
    chunk: int,
    positions_of: Callable[[Sample], Tensor],
    place: Callable[[Mapping[str, Any]], dict[str, Any]],
    autocast: Callable[[], AbstractContextManager],
    compute_entropy: bool = False,
    blanks: Mapping[str, Sample] | None = None,
) -> TokenScores:
    """Score the last `completion` tokens of (B, P + C) rows, `chunk` rows to a packed row.

    Arguments and result are those of `token_scores`; scores of padding are 0.
    """
    texts = completions_of(input_ids, attention_mask, completion)
    parts = []
    for start in range(0, input_ids.size(0), chunk):
        rows = samples[start : start + chunk]
        shown = {kind for sample in rows for kind in sample.media}
        missing = [blank for kind, blank in (blanks or {}).items() if kind not in shown]
        packed = pack(rows, texts[start : start + chunk], positions_of, missing)
        with autocast():
            output = model(**place(packed_inputs(packed)), fused_lm_head=True)
        shape = (len(rows), completion)
        parts.append(
            (
                _table(output.log_probs[0], packed, shape),
                _table(output.entropy[0], packed, shape) if compute_entropy else None,
            )
        )
    logps, entropies = zip(*parts, strict=True)
    return TokenScores(torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None)


def packed_inputs(packed: Packed) -> dict[str, Any]:
    """Forward arguments of a packed row: each prompt's pixels once."""
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": torch.zeros(NO_MASK_SHAPE),
        "shift_labels": packed.labels,
        "packed": packed.layout,
        **collate_visual(packed.samples),
    }


def _table(values: Tensor, packed: Packed, shape: tuple[int, int]) -> Tensor:
    """(S,) scores as a (B, C) table, 0 where a completion has ended."""
    table = values.new_zeros(shape)
    return table.index_put((packed.rows.to(values.device), packed.columns.to(values.device)), values)
