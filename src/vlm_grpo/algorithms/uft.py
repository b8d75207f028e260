"""UFT (arXiv:2505.16984): completions begin with a part of a demonstration, which gets shorter during training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_grpo.algorithms.algorithm import AlgorithmOptions, MicroStep, Rows, Score, ScoredRollout
from vlm_grpo.algorithms.off_policy import DemonstrationAlgorithm, cosine
from vlm_grpo.data.demonstrations import expert_answers
from vlm_grpo.records import Row, required

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch
    from vlm_grpo.rollouts.encoder import EncodedPrompt

PIECE = re.compile(r".+?(?:\n+|(?<=[.!?;])\s+|$)", re.DOTALL)  # a line or a sentence, with the space after it
FINAL = re.compile(r"<answer>|\\boxed\{")  # where a solution stops reasoning and gives its answer


def segments(solution: str, count: int) -> list[str]:
    """Return at most `count` segments of about equal length that make up the solution up to its final answer.

    They end at the end of a line or sentence. The final answer (from `<answer>` or `\\boxed{` on) is left to the model;
    a solution without reasoning has no segments.
    """
    final = FINAL.search(solution)
    pieces = PIECE.findall(solution[: final.start()] if final else solution)
    if not "".join(pieces).strip():
        return []
    number = min(count, len(pieces))
    bounds = [round(part * len(pieces) / number) for part in range(number + 1)]
    return ["".join(pieces[start:end]) for start, end in pairwise(bounds)]


@dataclass(frozen=True)
class UFTOptions(AlgorithmOptions):
    """How long hints are, and the weight of their loss.

    The first k of `hint_segments` segments are the hint. k is binomial with a probability that falls by a cosine from
    `hint_high` to `hint_low` over `hint_steps` steps and is 0 afterwards. `hint_coef` weights the negative
    log-likelihood of the hint.
    """

    hint_segments: int = 5
    hint_high: float = 0.95
    hint_low: float = 0.05
    hint_steps: int = 300
    hint_coef: float = 0.001

    def validate(self, num_generations: int) -> str | None:
        if not 0 <= self.hint_low <= self.hint_high <= 1:
            return "0 <= hint_low <= hint_high <= 1 must hold"
        is_valid = min(self.hint_segments, self.hint_steps) >= 1
        return None if is_valid else "hint_segments and hint_steps must be at least 1"

    def probability(self, step: int) -> float:
        """Return the probability of each segment at an optimizer step, counted from 0."""
        return 0.0 if step > self.hint_steps else cosine(step / self.hint_steps, self.hint_high, self.hint_low)


class UFT(DemonstrationAlgorithm):
    """GRPO on completions that begin with a hint, and the negative log-likelihood of the hints."""

    Options = UFTOptions
    options: UFTOptions

    def hints(self, rows: Rows, step: int) -> list[str]:
        """Return the hint of each row; it is drawn once for each group."""
        probability = self.options.probability(step)
        groups = [self.group_of(len(rows), row)[0] for row in range(len(rows))]
        return [self._hint(*pair, step, probability) for pair in zip(rows, groups, strict=True)]

    def _hint(self, row: Row, group: int, step: int, probability: float) -> str:
        answers, random = expert_answers(row), self.random_of(group, step)
        if not answers:
            return ""
        answer = answers[random.integers(len(answers))]
        self.encode.checked(answer)
        parts = segments(answer.text, self.options.hint_segments)
        return "".join(parts[: random.binomial(len(parts), probability)]).rstrip(
            " "
        )  # a space is part of the next word

    def finish(self, rollout: ScoredRollout) -> None:
        """Record the number of hint tokens of all processes."""
        rollout.metrics["expert/hint_probability"].append(self.options.probability(rollout.step))
        prompts = rollout.batch.prompts or []
        count = torch.tensor(sum(p.answer_prefix_length for p in prompts), device=rollout.rewards.device)
        rollout.batch.num_hint_tokens = self.ranks.gather(count).sum()

    def extra_loss(
        self, loss: Tensor, batch: RolloutBatch, place: MicroStep, score: Score
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss plus the weighted loss of the hints."""
        if batch.num_hint_tokens is None or batch.num_hint_tokens <= 0:
            return loss, {}
        nll = self._hint_loss(score, batch, place)
        return loss + self.options.hint_coef * nll, {"expert/loss": self.mean_over_ranks(nll * place.count)}

    def _hint_loss(self, score: Score, batch: RolloutBatch, place: MicroStep) -> Tensor:
        """Return this micro-batch's share of the mean over all hint tokens of the step, one hint per completion."""
        all_prompts, total = batch.prompts or [], required(batch.num_hint_tokens, "the number of hint tokens")
        hinted = {id(prompt): prompt for prompt in all_prompts if prompt.answer_prefix_length}.values()
        counts = [sum(prompt is other for other in all_prompts) for prompt in hinted]
        prompts, tokens = [without_hint(p) for p in hinted], [p.input_ids[-p.answer_prefix_length :] for p in hinted]
        if not hinted:  # other processes have some
            prompts, tokens, counts = all_prompts[:1], [[self.encode.end]], [0]
        logps, mask = self.logprobs_of(score, prompts, tokens, required(batch.media_anywhere, "the kinds of media"))
        weights = mask * torch.tensor(counts, device=mask.device)[:, None]
        everyone = total * place.count / self.args.steps_per_generation / self.ranks.count
        return (-logps * weights).sum() / everyone


def without_hint(prompt: EncodedPrompt) -> EncodedPrompt:
    """Return the prompt without the hint at its end."""
    per_token = {name: values[: -prompt.answer_prefix_length] for name, values in prompt.per_token.items()}
    return replace(
        prompt, input_ids=prompt.input_ids[: -prompt.answer_prefix_length], per_token=per_token, answer_prefix_length=0
    )


def with_hint(row: Row, hint: str) -> Row:
    """Return the row with the hint as the beginning of the assistant's turn.

    Raises:
        ValueError: its prompt is plain text, which has no turns.
    """
    if not hint:
        return row
    prompt = row["prompt"]
    if isinstance(prompt, str):
        raise ValueError(f"{row.get('where') or 'a row'}: hints need a prompt of chat messages, got plain text")
    is_text = isinstance(prompt[-1]["content"], str)
    turn = {"role": "assistant", "content": hint if is_text else [{"type": "text", "text": hint}]}
    return {**row, "prompt": [*prompt, turn]}


def without_hints(
    prompts: Sequence[Any], completions: Sequence[Any], hints: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """Return prompts without hints and completions with them: rewards score both as one completion."""
    if not hints:
        return list(prompts), list(completions)
    bare = [prompt[:-1] if hint else prompt for prompt, hint in zip(prompts, hints, strict=True)]
    whole = [
        [{**completion[0], "content": hint + completion[0]["content"]}, *completion[1:]]
        for completion, hint in zip(completions, hints, strict=True)
    ]
    return bare, whole
