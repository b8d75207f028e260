"""The completions of a rollout with everything that the loss needs, typed; TRL holds the same as a dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import pad

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import MEDIA_KINDS, EncodedPrompt

# Names in TRL's dict, in checkpoints and in what the loss is given, where they differ from the field's.
KEYS = {
    "prompts": "samples",
    "old_logps": "old_per_token_logps",
    "old_sequence_logps": "old_logps",
    "ref_logps": "ref_per_token_logps",
    "sampling_logps": "sampling_per_token_logps",
}
FORMER_KEYS = {  # in checkpoints of earlier versions
    "chosen": "token_mask",
    "verdict": "is_correct",
    "weight": "loss_weight",
    "hint_tokens": "num_hint_tokens",
}
PROMPT_FIELDS = ("prompt_ids", "prompt_mask")  # padded on the left; all other (B, C) tensors on the right
PADDING_VALUES = {"tool_mask": 1}


@dataclass
class RolloutBatch:
    """B completions: tokens, masks, advantages and log-probabilities, on one process.

    P is the length of the longest prompt, C that of the longest completion. A field is None where a run has none.

    Attributes:
        prompt_ids, prompt_mask: (B, P), padded on the left.
        completion_ids, completion_mask: (B, C), padded on the right; the mask is 1 at tokens to attend to.
        advantages: (B,), or (B, C) where tokens have their own.
        num_items_in_batch: (), tokens of the loss on all processes; RLOO has none.
        tool_mask: (B, C), 0 at the tokens of tools.
        old_logps: (B, C) log-probabilities under the policy that sampled the tokens.
        old_sequence_logps: (B,) RLOO's, of whole completions.
        ref_logps: (B, C) under the reference model.
        sampling_logps: (B, C) as vLLM gave them.
        importance_sampling_ratio: (B, C) or (B, 1), weights that correct for vLLM.
        token_mask: (B, C) of bool, the tokens that the algorithm marks.
        is_expert: (B, 1) of bool, which rows are demonstrations.
        is_correct: (B, 1), 1 for a right answer, -1 for a wrong one, 0 for neither.
        loss_weight: (B, 1), weights of rows.
        values, returns: (B, C) of a value model.
        num_hint_tokens: (), hints' tokens on all processes.
        prompts: B encoded prompts; rows of a group share the object.
        media_anywhere: which of MEDIA_KINDS the rows of any process show.
        others: what else TRL's own pass takes, of images above all.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    advantages: Tensor
    num_items_in_batch: Tensor | None = None
    tool_mask: Tensor | None = None
    old_logps: Tensor | None = None
    old_sequence_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    sampling_logps: Tensor | None = None
    importance_sampling_ratio: Tensor | None = None
    token_mask: Tensor | None = None
    is_expert: Tensor | None = None
    is_correct: Tensor | None = None
    loss_weight: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    num_hint_tokens: Tensor | None = None
    prompts: list[EncodedPrompt] | None = None
    media_anywhere: list[bool] | None = None
    others: ModelInputs = field(default_factory=dict)

    @classmethod
    def collate(
        cls,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[list[int]],
        *,
        pad_token_id: int,
        device: torch.device,
        masks: Sequence[list[int]] | None = None,
        logprobs: Sequence[list[float | None]] | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> RolloutBatch:
        """Return the completions of prompts as tensors, with advantages of 0.

        Args:
            prompts: of the completions, with the images that tools showed.
            ids: tokens of the completions.
            pad_token_id: pads both.
            device: of the tensors.
            masks: 1 at the model's own tokens, 0 at those of tools; None where all are the model's.
            logprobs: of the completions' tokens as the engine sampled them.
            pad_to_multiple_of: the lengths of prompts and completions are a multiple of it.
        """

        def padded(rows: Sequence[Sequence[float]], fill: float, side: str = "right") -> Tensor:
            tensors = [torch.tensor(row) for row in rows]
            padding = pad(tensors, fill, side, pad_to_multiple_of)  # type: ignore[arg-type]  # floats take a float
            return padding.to(device)

        asked = [prompt.input_ids for prompt in prompts]
        unknown = float("nan")
        return cls(
            prompt_ids=padded(asked, pad_token_id, "left"),
            prompt_mask=padded([[1] * len(row) for row in asked], 0, "left"),
            completion_ids=padded(ids, pad_token_id),
            completion_mask=padded([[1] * len(row) for row in ids], 0),
            advantages=torch.zeros(len(ids), device=device),
            tool_mask=None if masks is None else padded(masks, 1),
            sampling_logps=None
            if logprobs is None
            else padded([[unknown if each is None else each for each in row] for row in logprobs], 0.0),
            prompts=list(prompts),
        )

    def mask_rows(self, is_masked: Tensor) -> None:
        """Leave rows out of attention and loss: (B,) of bool."""
        row_mask = (~is_masked)[:, None].int()
        self.completion_mask = self.completion_mask * row_mask
        if self.tool_mask is not None:
            self.tool_mask = self.tool_mask * row_mask

    @classmethod
    def from_trl_dict(cls, values: ModelInputs) -> RolloutBatch:
        """Return the batch that a dict of TRL's holds."""
        known = {**FORMER_KEYS, **{KEYS.get(name, name): name for name in _field_names()}}
        anywhere = [f"{kind}_anywhere" for kind in MEDIA_KINDS]
        media = [bool(values[key]) for key in anywhere] if anywhere[0] in values else None
        others = {key: value for key, value in values.items() if key not in known and key not in anywhere}
        return cls(
            **{known[key]: value for key, value in values.items() if key in known}, media_anywhere=media, others=others
        )

    def to_trl_dict(self) -> ModelInputs:
        """Return the dict that TRL's buffer and loss take, without what is None."""
        named = {KEYS.get(name, name): getattr(self, name) for name in _field_names()}
        kinds = zip(MEDIA_KINDS, self.media_anywhere or (), strict=False)
        anywhere = {f"{kind}_anywhere": torch.tensor(is_anywhere) for kind, is_anywhere in kinds}
        return {**{key: value for key, value in named.items() if value is not None}, **self.others, **anywhere}

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def loss_mask(self) -> Tensor:
        """(B, C), 1 at the tokens of the completion that the loss counts: no padding, and nothing of tools."""
        return self.completion_mask if self.tool_mask is None else self.completion_mask * self.tool_mask

    @property
    def sampled_mask(self) -> Tensor:
        """(B, C), the tokens of the loss that the policy itself sampled: no demonstrations."""
        return self.loss_mask if self.is_expert is None else self.loss_mask * ~self.is_expert

    def select(self, rows: Sequence[int]) -> RolloutBatch:
        """Return these rows in this order; fields without rows are unchanged."""
        rows = list(rows)

        def select_rows(value: object) -> object:
            if isinstance(value, Tensor):
                return value if value.ndim == 0 else value[rows]
            return [value[row] for row in rows] if isinstance(value, list) else value

        return self._map_fields(select_rows)

    @classmethod
    def concat(cls, batches: Sequence[RolloutBatch], pad_token_id: int) -> RolloutBatch:
        """Return the rows of all batches in order, padded to the longest; fields without rows are the first batch's."""
        tables = [batch.to_trl_dict() for batch in batches]
        result: ModelInputs = {}
        for name, value in tables[0].items():
            values = [table[name] for table in tables]
            if isinstance(value, list):
                result[name] = [item for part in values for item in part]
            elif isinstance(value, Tensor) and value.ndim:
                result[name] = torch.cat(_padded(name, values, pad_token_id))
            else:
                result[name] = value
        return cls.from_trl_dict(result)

    def shuffle_groups(self) -> RolloutBatch:
        """Return whole groups in a random order; TRL's own shuffle would scatter their completions.

        As many random numbers are drawn as TRL draws; a group takes the place of the first of its rows.
        """
        group_of = {row: group for group in prompt_groups(self.prompts or []) for row in group}
        permutation = torch.randperm(len(self)).tolist()
        return self.select(
            [row for group in {id(group_of[row]): group_of[row] for row in permutation}.values() for row in group]
        )

    def _map_fields(self, function: Callable[[Any], object]) -> RolloutBatch:
        """Return the batch with a function applied to every field that has rows."""
        fields_of_rows: ModelInputs = {name: function(getattr(self, name)) for name in _field_names()}
        others = {name: function(value) for name, value in self.others.items()}
        return RolloutBatch(**fields_of_rows, media_anywhere=self.media_anywhere, others=others)


def _field_names() -> list[str]:
    return [each.name for each in fields(RolloutBatch) if each.name not in ("media_anywhere", "others")]


def _padded(name: str, values: Sequence[Tensor], pad_token_id: int) -> list[Tensor]:
    if values[0].ndim < 2:
        return list(values)
    fill = pad_token_id if name.endswith("_ids") else PADDING_VALUES.get(name, 0)
    longest = max(value.size(1) for value in values)
    missing = [longest - value.size(1) for value in values]
    sides = [(count, 0) if name in PROMPT_FIELDS else (0, count) for count in missing]
    return [torch.nn.functional.pad(value, side, value=fill) for value, side in zip(values, sides, strict=True)]


def prompt_groups(prompts: Sequence[EncodedPrompt]) -> list[list[int]]:
    """Return the numbers of neighbouring rows that continue the same prompt."""
    groups: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        if row and prompt is prompts[row - 1]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
