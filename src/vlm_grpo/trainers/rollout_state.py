"""The current rollout in a checkpoint: one rollout may serve several steps, and a checkpoint can fall between them.

Without it a resumed run samples again and diverges. Pixels are not written: the images are processed again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from vlm_grpo.records import Message
from vlm_grpo.rollouts.encoder import TOOLS_COLUMN, PromptEncoder, drop_images
from vlm_grpo.rollouts.segment import prompt_refs, with_segment
from vlm_grpo.trainers.state_file import load_state, save_state, state_path

logger = logging.getLogger(__name__)

SHAPE = ("world_size", "per_device_train_batch_size", "steps_per_generation", "num_iterations", "num_generations")


def rollout_shape(args: Any) -> dict[str, Any]:
    """Return the settings that determine the shape of a rollout and its contents."""
    contents = {"algorithm": getattr(args, "algorithm", None), "use_vllm": args.use_vllm, "beta above 0": args.beta > 0}
    return {**{name: getattr(args, name) for name in SHAPE}, **contents}


def rollout_path(checkpoint: str | Path, rank: int) -> Path:
    """Return the path of a process's rollout in a checkpoint."""
    return state_path(checkpoint, f"rollout_{rank}")


def save_rollout(checkpoint: str | Path, rank: int, step: int, batches: list[dict[str, Any]] | None, args: Any) -> None:
    """Write the micro-batches of the current rollout (None between rollouts), and the number of micro-steps in all.

    The training arguments that determine the shape of a rollout are written too.
    """
    stripped = batches and [strip_pixels(batch) for batch in batches]
    content = {"step": step, "batches": stripped, "shape": rollout_shape(args)}
    save_state(rollout_path(checkpoint, rank), content)


def load_rollout(
    checkpoint: str | Path, rank: int, encoder: PromptEncoder, device: torch.device, args: Any
) -> tuple[int, list[dict[str, Any]] | None]:
    """Return what `save_rollout` wrote, with pixels; (0, None) for a checkpoint without a rollout, such as stock TRL's.

    Raises:
        ValueError: an image of the rollout cannot be read any more, the file of this process is missing or broken, or
            the checkpoint is in the middle of a rollout whose shape has changed.
    """
    path = rollout_path(checkpoint, rank)
    source = path if path.is_file() else rollout_path(checkpoint, 0)
    if not source.is_file():
        logger.warning(
            "%s holds no rollout, like those of stock TRL: a new one begins, even in the middle of one", checkpoint
        )
        return 0, None
    content = load_state(source)
    now = rollout_shape(args)
    changed = [f"{name} {old}, now {now[name]}" for name, old in content["shape"].items() if old != now[name]]
    if changed and content["batches"]:
        raise ValueError(
            f"{checkpoint} lies in the middle of a rollout made with {'; '.join(changed)}: resume with the original "
            "values, or from a checkpoint saved between rollouts"
        )
    if changed:
        return 0, None  # a rollout of the new shape begins
    if source != path:
        raise ValueError(f"{path} is missing: the checkpoint cannot be resumed from, use an earlier one")
    batches = content["batches"] and restore_pixels(content["batches"], encoder)
    return content["step"], batches and [send_to_device(batch, device, skip_keys="samples") for batch in batches]


def strip_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with its prompts replaced by what they are encoded from."""
    prompts = batch.get("samples")
    if prompts is None:
        return batch
    return {**batch, "samples": [(p.messages, prompt_refs(p), p.videos, p.tools, p.segment) for p in prompts]}


def restore_pixels(batches: list[dict[str, Any]], encoder: PromptEncoder) -> list[Message]:
    """Return the batches with encoded prompts; they are encoded together, so that each image is processed once."""
    entries = [entry for batch in batches for entry in batch.get("samples") or []]
    rows = [
        {"prompt": messages, "images": images, "videos": videos, TOOLS_COLUMN: tools}
        for messages, images, videos, tools, _ in entries
    ]
    prompts = drop_images(encoder.encode(rows))
    restored = iter([with_segment(prompt, entry[-1]) for prompt, entry in zip(prompts, entries, strict=True)])
    return [
        {**batch, "samples": [next(restored) for _ in batch["samples"]]} if "samples" in batch else batch
        for batch in batches
    ]
