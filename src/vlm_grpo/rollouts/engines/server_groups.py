"""Completions of the same prompt are asked of a server together; what comes back is put in the order of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlm_grpo.rollouts.encoder import EncodedPrompt, unique_prompts
from vlm_grpo.rollouts.engines.engine import Generation

REASONS_TO_END = {"stop", "length"}


class PromptGroup(NamedTuple):
    """A prompt, the numbers of the rows that continue it, and how many completions a server is asked for."""

    prompt: EncodedPrompt
    rows: list[int]
    n: int


class SampledTokens(NamedTuple):
    """A completion as a server sends it: tokens with the one that ends it, their log-probabilities, why it ended."""

    ids: list[int]
    logprobs: list[float | None]
    finish_reason: str


def group_rows(prompts: Sequence[EncodedPrompt], *, is_greedy: bool) -> list[PromptGroup]:
    """Return each prompt once. One greedy completion is asked for: all of a prompt are alike, and vLLM wants one.

    Raises:
        ValueError: a prompt has a video.
    """
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(id(prompt), []).append(row)
    groups = []
    for prompt in unique_prompts(prompts):
        n = 1 if is_greedy else len(rows[id(prompt)])
        groups.append(PromptGroup(prompt, rows[id(prompt)], n))
    videos = [video for group in groups for video in group.prompt.videos]
    if videos:
        raise ValueError(
            f"{videos[0].where or 'a prompt'}: a video, which servers do not process as the trainer does (vLLM issues "
            "46817 and 46988 are of Qwen's); use --rollout_engine transformers for data with videos"
        )
    return groups


def in_row_order(groups: Sequence[PromptGroup], answers: Sequence[Sequence[SampledTokens]]) -> Generation:
    """Return the completions of groups in the order of their rows."""
    completions = {
        row: answer[number % len(answer)]
        for group, answer in zip(groups, answers, strict=True)
        for number, row in enumerate(group.rows)
    }
    ordered = [completions[row] for row in range(len(completions))]
    return Generation(
        [list(each.ids) for each in ordered],
        [list(each.logprobs) for each in ordered],
        [each.finish_reason for each in ordered],
    )


def fault_of(completions: Sequence[SampledTokens], n: int) -> str | None:
    """Return why completions are not `n` finished ones, such as after a server's pause; None if they are."""
    reasons = sorted({each.finish_reason for each in completions})
    if len(completions) != n or not REASONS_TO_END.issuperset(reasons) or not all(each.ids for each in completions):
        return f"expected {n} completions, got {len(completions)} that ended with {', '.join(reasons) or 'nothing'}"
    return None


def check_length(completions: Sequence[SampledTokens], most: int, prompt_length: int, advice: str) -> None:
    """Check that no completion was cut by the server's own limit, which it does without a word.

    Raises:
        ValueError: one ended for its length, with fewer than `most` tokens.
    """
    for each in completions:
        if each.finish_reason == "length" and len(each.ids) < most:
            raise ValueError(
                f"a server ended a completion after {len(each.ids)} of {most} tokens, since its prompt has "
                f"{prompt_length}: its limit for both is too small. {advice}"
            )
