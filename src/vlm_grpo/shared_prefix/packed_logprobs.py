"""Log-probabilities of completions from packed rows: those of `trainers.logprobs.padded_logprobs`, for less work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, collate_visual, missing_dummies
from vlm_grpo.rollouts.segment import full_row
from vlm_grpo.shared_prefix.batching import split_into_forwards
from vlm_grpo.shared_prefix.oom import ForwardSplitter
from vlm_grpo.shared_prefix.packing import Layout, Packed, pack

# An attention mask of four dimensions is taken as it is; the packed attention function does not look at it.
NO_MASK_SHAPE = (1, 1, 1, 1)


class TokenLogprobs(NamedTuple):
    """(B, C) log-probabilities and entropies, the router's load-balancing loss, and (B, C) values of a value head."""

    logps: Tensor
    entropies: Tensor | None
    aux_loss: Tensor | None
    values: Tensor | None = None


def backbone(model: nn.Module) -> nn.Module:
    """Return the model below its head, also inside an adapter."""
    base_of: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    unwrapped = model if base_of is None else base_of()
    return cast("nn.Module", unwrapped.base_model)


def select_scored_positions(module: nn.Module, args: tuple, kwargs: ModelInputs, output: Any) -> Any:
    """Keep, as a forward hook of the backbone, only the positions of a packed row that predict something."""
    layout: Layout | None = kwargs.get("packed")
    if layout is not None:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[:, layout.scored.to(hidden.device)]
    return output


def prompt_positions(model: nn.Module, prompt: EncodedPrompt) -> Tensor:
    """Return the positions of a prompt's tokens, (1, P), or (3, P) with mRoPE, as the model's forward computes them.

    Where the completion shows images, those of its tokens follow: they move on by more than one at an image.
    """
    index = getattr(backbone(model), "get_rope_index", None)
    prompt = full_row(prompt)
    count = len(prompt.input_ids)
    if index is None:
        return torch.arange(count)[None]
    if not prompt.visual:
        return torch.arange(count).expand(3, -1)
    fields = {
        "attention_mask": torch.ones(1, count, dtype=torch.long),  # this and the next: Qwen3-Omni asks for them
        "second_per_grids": prompt.visual.get("video_second_per_grid"),
        **prompt.visual,
        **{name: torch.tensor([values]) for name, values in prompt.per_token.items()},
    }
    parameters = set(inspect.signature(index).parameters)
    fields = {name: value for name, value in fields.items() if name in parameters and value is not None}
    positions, _ = index(torch.tensor([prompt.input_ids]), **fields)
    return positions[:, 0]


def unpadded_completions(input_ids: Tensor, attention_mask: Tensor, completion: int) -> list[list[int]]:
    """Return the tokens of each row's completion without padding."""
    lengths = attention_mask[:, -completion:].sum(dim=1).tolist()
    return [row[:length] for row, length in zip(input_ids[:, -completion:].tolist(), lengths, strict=True)]


@dataclass(frozen=True)
class Packing:
    """How the rows of a pass are put into packed rows.

    Attributes:
        positions_of: positions of a prompt's tokens, `prompt_positions`.
        budget: about how many tokens a forward takes; None is a fixed number of rows.
        sync_counts: from the numbers of forwards and groups on this process to the largest and the smallest on any.
        splitter: into how many parts a forward is split because memory ran out.
    """

    positions_of: Callable[[EncodedPrompt], Tensor]
    budget: int | None = None
    sync_counts: Callable[[int, int], tuple[int, int]] = lambda num_forwards, num_groups: (num_forwards, num_groups)
    splitter: ForwardSplitter = field(default_factory=ForwardSplitter)


def packed_logprobs(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    completion: int,
    chunk: int,
    packing: Packing,
    to_device: Callable[[ModelInputs], ModelInputs],
    autocast: Callable[[], AbstractContextManager],
    compute_entropy: bool = False,
    dummies: Mapping[str, EncodedPrompt] | None = None,
    visual: Callable[[Sequence[EncodedPrompt]], ModelInputs] = collate_visual,
    skipped: Sequence[bool] | None = None,
    has_values: bool = False,
) -> TokenLogprobs:
    """Score the last `completion` tokens of (B, P + C) rows: what `padded_logprobs` returns, with 0 for padding.

    `chunk` rows, or as many as fit into the budget, go into one packed row. Rows that are `skipped` are left out and
    get 0; where all of a forward are, the shortest prompt goes through alone, so that every parameter has a gradient.
    With `has_values` the model has a value head, whose values are returned too.
    """
    texts = unpadded_completions(input_ids, attention_mask, completion)
    if skipped is not None:
        texts = [[] if is_skipped else text for text, is_skipped in zip(texts, skipped, strict=True)]
    if packing.budget is None:
        forwards = [list(range(start, min(start + chunk, len(texts)))) for start in range(0, len(texts), chunk)]
    else:
        forwards = split_into_forwards(prompts, [len(text) for text in texts], packing.budget, packing.sync_counts)
    logps = torch.zeros(len(texts), completion, device=input_ids.device)  # (B, C)
    entropies = logps
    values = logps

    def forward(packed: Packed) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with autocast():
            output = model(**to_device(packed_inputs(packed, visual)), fused_lm_head=True)
        entropy = output.entropy[0] if compute_entropy else None
        return output.log_probs[0], entropy, output.token_values[0] if has_values else None

    for live in [part for rows in forwards for part in packing.splitter.split(_scored_rows(rows, prompts, texts))]:
        scored = [prompts[row] for row in live]
        packed = pack(scored, [texts[row] for row in live], packing.positions_of, missing_dummies(scored, dummies))
        token_logps, entropy, value = packing.splitter.run(forward, packed)
        indices = (torch.tensor(live)[packed.rows], packed.columns)
        logps = logps + _table(token_logps, indices, logps)
        if entropy is not None:
            entropies = entropies + _table(entropy, indices, logps)
        if value is not None:
            values = values + _table(value, indices, logps)
    return TokenLogprobs(logps, entropies if compute_entropy else None, None, values if has_values else None)


def _scored_rows(rows: list[int], prompts: Sequence[EncodedPrompt], texts: Sequence[list[int]]) -> list[int]:
    """Return the rows of a forward that have something to score; the one with the shortest prompt if none has."""
    live = [row for row in rows if texts[row]]
    return live or [min(rows, key=lambda row: len(prompts[row].input_ids))]


def packed_inputs(packed: Packed, visual: Callable[[Sequence[EncodedPrompt]], ModelInputs]) -> ModelInputs:
    """Return the forward arguments of a packed row: those of `visual` for its prompts, and where completions are."""
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": torch.zeros(NO_MASK_SHAPE),
        "shift_labels": packed.labels,
        "packed": packed.layout,
        **visual(packed.prompts),
    }


def _table(values: Tensor, indices: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """Return (S,) scores in a (B, C) table of zeros; a score without an index is kept for its gradient alone."""
    table = values.new_zeros(like.shape)
    count = len(indices[0])
    filled = table.index_put(tuple(index.to(values.device) for index in indices), values[:count])
    return filled if count == len(values) else filled + 0.0 * values.sum()
