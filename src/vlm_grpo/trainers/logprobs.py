"""Log-probabilities of completions under a model, for the loss, the old policy and the reference alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import (
    MEDIA_KINDS,
    EncodedPrompt,
    PromptEncoder,
    collate_per_token,
    collate_visual,
    missing_dummies,
    unique_prompts,
)
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.shared_prefix.compat import SharedPrefixState, mean_difference, tolerance
from vlm_grpo.shared_prefix.oom import ForwardSplitter
from vlm_grpo.shared_prefix.packed_logprobs import (
    Packing,
    TokenLogprobs,
    backbone,
    packed_logprobs,
    prompt_positions,
)
from vlm_grpo.shared_prefix.vision_cache import cache_features, visual_inputs
from vlm_grpo.shared_prefix.zero_advantage import ZeroAdvantageRows


class PaddedRows(NamedTuple):
    """Prompts with their (B, P + C) token ids and attention mask."""

    prompts: Sequence[EncodedPrompt]
    input_ids: Tensor
    attention_mask: Tensor


def model_inputs(
    prompts: Sequence[EncodedPrompt],
    input_ids: Tensor,
    attention_mask: Tensor,
    completion: int,
    visual: Callable[[Sequence[EncodedPrompt]], ModelInputs] = collate_visual,
) -> dict:
    """Return the forward arguments of one chunk of rows; what is collated here is on the host.

    Every key that the processor returned reaches the model: none is dropped because a list does not name it.
    """
    prompt_length = input_ids.size(1) - completion
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        **visual(prompts),
        **collate_per_token(prompts, prompt_length, completion),
    }


def padded_logprobs(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    completion: int,
    chunk: int,
    to_device: Callable[[ModelInputs], ModelInputs],
    autocast: Callable[[], AbstractContextManager],
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
    dummies: Mapping[str, EncodedPrompt] | None = None,
    visual: Callable[[Sequence[EncodedPrompt]], ModelInputs] = collate_visual,
    has_values: bool = False,
) -> TokenLogprobs:
    """Score the last `completion` tokens of (B, P + C) rows, `chunk` rows at a time.

    Pixels stay on the host; `to_device` moves one chunk's tensors to the device. The model must carry TRL's fused LM
    head, which returns log-probabilities instead of logits. `dummies` maps kinds of media to prompts: a chunk without
    one gets that prompt as one more row, whose scores are discarded, so that its vision tower runs as on the other
    processes. `visual` returns the visual forward arguments of some rows. With `has_values` the model has a
    value head, whose (B, C) values of the states before the tokens are returned too.
    """
    extra = {"output_router_logits": True} if compute_aux_loss else {}
    logps, entropies, aux_losses, values = [], [], [], []
    for start in range(0, input_ids.size(0), chunk):
        rows = PaddedRows(
            prompts[start : start + chunk], input_ids[start : start + chunk], attention_mask[start : start + chunk]
        )
        count = len(rows.prompts)
        for dummy in missing_dummies(rows.prompts, dummies):
            rows = with_dummy_row(rows, dummy, completion)
        inputs = to_device(model_inputs(*rows, completion, visual))
        labels = rows.input_ids.masked_fill(rows.attention_mask == 0, -100)
        labels[:, :-completion] = -100
        with autocast():
            output = model(**inputs, **extra, labels=labels, fused_lm_head=True)
        logps.append(output.log_probs[:count, -completion:])
        if compute_entropy:
            entropies.append(output.entropy[:count, -completion:])
        if compute_aux_loss:
            aux_losses.append(output.aux_loss)
        if has_values:
            values.append(output.token_values[:count, -completion - 1 : -1])
    return TokenLogprobs(
        logps=torch.cat(logps),
        entropies=torch.cat(entropies) if compute_entropy else None,
        aux_loss=torch.stack(aux_losses).mean() if compute_aux_loss else None,
        values=torch.cat(values) if has_values else None,
    )


def with_dummy_row(rows: PaddedRows, dummy: EncodedPrompt, completion: int) -> PaddedRows:
    """Return the rows and one more: the dummy prompt before an empty completion. All are padded to its length."""
    missing = max(0, len(dummy.input_ids) + completion - rows.input_ids.size(1))
    ids, mask = (nn.functional.pad(tensor, (missing, 0)) for tensor in (rows.input_ids, rows.attention_mask))
    row, seen = torch.zeros_like(ids[:1]), torch.zeros_like(mask[:1])
    columns = slice(ids.size(1) - completion - len(dummy.input_ids), ids.size(1) - completion)
    row[0, columns] = torch.tensor(dummy.input_ids, device=row.device)
    seen[0, columns] = 1
    return PaddedRows([*rows.prompts, dummy], torch.cat([ids, row]), torch.cat([mask, seen]))


@dataclass
class ScoredRows:
    """The rows of a pass: their prompts, and what the pass must know of them beside their tokens.

    Attributes:
        prompts: one for each row, with the tensors of its images.
        media_anywhere: which of MEDIA_KINDS the rows of any process show.
        zero_advantage: rows that are left out, since they change nothing.
        attended: (B, C) completion tokens to attend to, where the mask of the loss leaves some of them out.
    """

    prompts: Sequence[EncodedPrompt]
    media_anywhere: Sequence[bool]
    zero_advantage: ZeroAdvantageRows | None = None
    attended: Tensor | None = None


class ScoringPass(NamedTuple):
    """The last C tokens of (B, P + C) rows, which a pass scores, and how: TRL's arguments, in TRL's order.

    Attributes:
        input_ids: (B, P + C).
        attention_mask: (B, P + C).
        completion: C.
        chunk: rows of a forward, where no budget of tokens says else; None is all of them.
        compute_entropy: whether the entropies of the tokens are returned too.
        compute_aux_loss: whether the load-balancing loss of a mixture of experts is returned too.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion: int
    chunk: int | None = None
    compute_entropy: bool = False
    compute_aux_loss: bool = False

    @classmethod
    def of_batch(cls, batch: RolloutBatch, chunk: int | None = None, compute_entropy: bool = False) -> ScoringPass:
        """Return the pass over the completions of a rollout or micro-batch."""
        ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
        mask = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
        return cls(ids, mask, batch.completion_ids.size(1), chunk, compute_entropy)

    def attending(self, attended: Tensor) -> ScoringPass:
        """Return the pass with another (B, C) mask of completion tokens to attend to."""
        return self._replace(attention_mask=torch.cat([self.attention_mask[:, : -self.completion], attended], dim=1))


class RolloutLogprobs(NamedTuple):
    """(B, C) log-probabilities of a new rollout under the policy and under the reference; None where not needed."""

    old: Tensor | None
    ref: Tensor | None


class LogprobModel:
    """Log-probabilities of completions under the policy, the old policy or the reference, packed or padded.

    Args:
        shared_prefix: whether rows that share a prompt are packed; switched off if the first rows differ by too much.
        splitter: into how many parts a packed forward is split because memory ran out.
        encoder: gives a dummy prompt for a kind of media that other processes show.
        ranks: collectives of the run.
        to_device: moves a forward's tensors to the device.
        policy: returns the policy without its wrapper.
        budget: about how many tokens a packed forward takes; None is a fixed number of rows.
        is_sharded: whether parameters are sharded over processes.
        is_single_process: whether no other process waits for this one in a collective.
        caches_features: whether image features stay the same during a run and every process has the whole tower.
    """

    def __init__(
        self,
        *,
        shared_prefix: SharedPrefixState,
        splitter: ForwardSplitter,
        encoder: PromptEncoder,
        ranks: Ranks,
        to_device: Callable[[ModelInputs], ModelInputs],
        policy: Callable[[], nn.Module],
        budget: int | None = None,
        is_sharded: bool = False,
        is_single_process: bool = True,
        caches_features: bool = False,
    ) -> None:
        self.shared_prefix, self.splitter, self.encoder, self.ranks = shared_prefix, splitter, encoder, ranks
        self.to_device, self.policy, self.budget = to_device, policy, budget
        self.is_sharded, self.is_single_process, self.caches_features = is_sharded, is_single_process, caches_features

    def __call__(
        self, model: nn.Module, rows: ScoredRows, asked: ScoringPass, *, has_values: bool = False
    ) -> TokenLogprobs:
        """Score completions under a model; with `has_values` it has a value head, whose values are returned too."""
        if self.caches_features:  # a rollout that comes from a checkpoint has none yet
            self.cache_features(self.policy(), rows.prompts)
        tokens = (asked.input_ids, asked.attention_mask)
        common: ModelInputs = {
            "completion": asked.completion,
            "to_device": self.to_device,
            "autocast": self.ranks.accelerator.autocast,
            "dummies": self._dummies(rows),
            "visual": self._visual,
        }
        options: ModelInputs = {
            "chunk": asked.chunk or len(asked.input_ids),
            "compute_entropy": asked.compute_entropy,
            "has_values": has_values,
        }
        if self.shared_prefix.is_on and not self.shared_prefix.is_checked and not asked.compute_aux_loss:
            self._check_shared_prefix(model, rows.prompts, *tokens, **common)
        if not self.shared_prefix.is_on or asked.compute_aux_loss:  # the router's loss counts every token of every row
            options = {**common, **options, "compute_aux_loss": asked.compute_aux_loss}
            return padded_logprobs(model, rows.prompts, *tokens, **options)
        skipped = None if rows.zero_advantage is None else rows.zero_advantage.rows.tolist()
        options = {**common, **options, "packing": self._packing(), "skipped": skipped}
        scores = self._packed(model, rows.prompts, *tokens, **options)
        return scores if rows.zero_advantage is None else rows.zero_advantage.fill_logprobs(scores)

    def cache_features(self, model: nn.Module, prompts: Sequence[EncodedPrompt]) -> None:
        """Run the vision tower once for each image that has no features yet."""
        with self.ranks.accelerator.autocast():
            cache_features(backbone(model), unique_prompts(prompts), self.to_device)

    def _packed(
        self, model: nn.Module, prompts: Sequence[EncodedPrompt], *rows: Tensor, **options: Any
    ) -> TokenLogprobs:
        """With smaller forwards where memory runs out; a pass with gradients is for `StepRetry` to take again."""
        while True:
            try:
                return packed_logprobs(model, prompts, *rows, **options)
            except torch.OutOfMemoryError as error:
                if torch.is_grad_enabled() or not self.is_single_process:
                    raise
                self.splitter.halve(len(prompts), error)

    def _packing(self) -> Packing:
        model = self.policy()
        return Packing(lambda prompt: prompt_positions(model, prompt), self.budget, self._sync_counts, self.splitter)

    def _sync_counts(self, num_forwards: int, num_groups: int) -> tuple[int, int]:
        """Return the most forwards that any process needs, and the fewest groups that any has."""
        both = self.ranks.gather(torch.tensor([[num_forwards, num_groups]], device=self.ranks.accelerator.device))
        return int(both[:, 0].max()), int(both[:, 1].min())

    def _visual(self, prompts: Sequence[EncodedPrompt]) -> ModelInputs:
        """Return the visual forward arguments of some rows, or of the prompts of a packed one."""
        # Where parameters are sharded, processes have to gather tower and embedding in the same order.
        if self.shared_prefix.mode == "off" or self.is_sharded:
            return collate_visual(prompts)
        return visual_inputs(self.policy(), prompts)

    def _dummies(self, rows: ScoredRows) -> dict[str, EncodedPrompt]:
        """Return a dummy prompt for each kind of media that some process has: all run the same modules in order.

        With one process a pass that leaves rows out gets them too, so that their tower has a gradient of 0.
        """
        if self.caches_features or (self.ranks.count == 1 and rows.zero_advantage is None):
            return {}
        return {kind: self.encoder.dummy_prompt(kind) for n, kind in enumerate(MEDIA_KINDS) if rows.media_anywhere[n]}

    def _check_shared_prefix(
        self, model: nn.Module, prompts: Sequence[EncodedPrompt], ids: Tensor, mask: Tensor, **common: Any
    ) -> None:
        """Score a few rows on both paths, once; all processes go on or leave the fast path together."""
        few = slice(0, 2)
        rows = (prompts[few], ids[few], mask[few])
        was_training = model.training
        model.eval()
        with torch.no_grad():
            plain = padded_logprobs(model, *rows, **common, chunk=2).logps
            fast = packed_logprobs(model, *rows, **common, chunk=2, packing=self._packing()).logps
        model.train(was_training)
        difference = mean_difference(plain, fast, mask[few, -common["completion"] :])
        worst = self.ranks.gather(torch.tensor([difference], device=ids.device)).max().item()
        self.shared_prefix.record_check(worst, tolerance(plain.dtype, self.ranks.accelerator.mixed_precision))
