"""Prompt lengths without decoding an image, so that over-long prompts are dropped before training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from vlm_grpo.data.images import image_size
from vlm_grpo.trainers.messages import read_prompt
from vlm_grpo.trainers.rollout import PromptEncoder

logger = logging.getLogger(__name__)


def drop_long_prompts(dataset: Any, encoder: PromptEncoder, limit: int) -> Any:
    """The rows whose prompt has at most `limit` tokens, image tokens included; how many were dropped is logged.

    Raises:
        ValueError: every prompt is longer, the data set is streamed, or the processor cannot tell image tokens.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"--max_prompt_length: needs a data set of known length, got {type(dataset).__name__}")
    kept, longest = [], 0
    for number in range(len(dataset)):
        length = prompt_length(dataset[number], encoder)
        longest = max(longest, length)
        if length <= limit:
            kept.append(number)
    if not kept:
        raise ValueError(f"--max_prompt_length {limit}: every prompt is longer, the longest has {longest} tokens")
    if len(kept) < len(dataset):
        dropped = len(dataset) - len(kept)
        logger.warning("--max_prompt_length %d drops %d of %d rows", limit, dropped, len(dataset))
    return dataset.select(kept)


def prompt_length(row: Mapping[str, Any], encoder: PromptEncoder) -> int:
    """Tokens of a row's prompt as the model will read it: every placeholder counts as its image's tokens.

    Raises:
        ValueError: the row has images and its processor cannot tell how many tokens they become.
    """
    prompt = read_prompt(row)
    if prompt.videos:
        return len(encoder.encode([row])[0].input_ids)  # how many frames a file has is known when it is decoded
    ids = encoder.unexpanded_ids(prompt.messages)
    tokens = image_tokens([image_size(ref) for ref in prompt.images], encoder.processor)
    return len(ids) - len(prompt.images) + sum(tokens)


def image_tokens(sizes: Sequence[tuple[int, int]], processor: Any) -> list[int]:
    """How many tokens images of some (width, height) in pixels become, by the processor's own rule."""
    if not sizes:
        return []
    if not hasattr(processor, "_get_num_multimodal_tokens"):
        name = type(processor).__name__
        raise ValueError(f"--max_prompt_length: {name} cannot tell how many tokens an image becomes; leave it out")
    return processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes])["num_image_tokens"]
