"""What TRL's vLLM is given: images in the size that was processed, and tokens with the placeholders it expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vlm_grpo.rollouts.batch import prompt_groups
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, unique_prompts


class VLLMPrompts(NamedTuple):
    """Tokens and images of prompts; in the same process each is completed `n` times."""

    ids: list[list[int]]
    images: list[Any]
    n: int | None


def vllm_prompts(
    encoder: PromptEncoder,
    prompts: Sequence[EncodedPrompt],
    ids: list[list[int]],
    *,
    is_in_process: bool,
    can_share: bool,
) -> VLLMPrompts:
    """Return the prompts for vLLM: its engine expands placeholders itself, its server wants them expanded.

    In the same process each group's prompt is given once, its completions asked for as `n`; the server gets unique
    prompts from TRL. With tensor parallelism TRL counts one completion for each prompt.

    Args:
        encoder: encoded them.
        prompts: one for each completion.
        ids: their tokens with expanded placeholders.
        is_in_process: whether the engine is in this process.
        can_share: whether it may be given each group's prompt once.

    Raises:
        ValueError: a prompt with a video.
    """
    if any(prompt.videos for prompt in prompts):
        raise ValueError("--use_vllm: TRL hands images to vLLM but no videos; leave --use_vllm out for videos")
    n = None
    if is_in_process:
        groups = prompt_groups(prompts)
        sizes = {len(group) for group in groups}
        is_shared = can_share and len(sizes) == 1
        n = sizes.pop() if is_shared else 1
        prompts = [prompts[group[0]] for group in groups] if is_shared else prompts
        short = {id(prompt): encoder.unexpanded_ids(prompt.messages) for prompt in unique_prompts(prompts)}
        ids = [short[id(prompt)] for prompt in prompts]
    resized = {id(prompt): encoder.resized_images(prompt) or None for prompt in unique_prompts(prompts)}
    return VLLMPrompts(ids, [resized[id(prompt)] for prompt in prompts], n)
