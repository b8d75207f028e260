"""The rollout at hand in a checkpoint: one rollout may serve several steps, and a checkpoint can fall between them.

Without it a resumed run samples anew and goes another way. Pixels are not written: the images are processed again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from vlm_grpo.rollouts.encoder import TOOLS_COLUMN, PromptEncoder, drop_images
from vlm_grpo.rollouts.segment import prompt_refs, with_segment
from vlm_grpo.trainers.state_file import load_state, save_state, state_path

logger = logging.getLogger(__name__)

SHAPE = ("world_size", "per_device_train_batch_size", "steps_per_generation", "num_iterations", "num_generations")


def shape_of(args: Any) -> dict[str, Any]:
    """Return the settings on which the shape of a rollout depends, and what it holds for the loss."""
    holds = {"algorithm": getattr(args, "algorithm", None), "use_vllm": args.use_vllm, "beta above 0": args.beta > 0}
    return {**{name: getattr(args, name) for name in SHAPE}, **holds}


def file_of(checkpoint: str | Path, rank: int) -> Path:
    """Where the rollout of a process lies in a checkpoint."""
    return state_path(checkpoint, f"rollout_{rank}")


def save_rollout(checkpoint: str | Path, rank: int, step: int, batches: list[dict[str, Any]] | None, args: Any) -> None:
    """Write the micro-batches of the rollout at hand (None between rollouts), and how many were seen in all.

    Of the training arguments those are written on which the shape of a rollout depends.
    """
    held = batches and [strip_pixels(batch) for batch in batches]
    content = {"step": step, "batches": held, "shape": shape_of(args)}
    save_state(file_of(checkpoint, rank), content)


def load_rollout(
    checkpoint: str | Path, rank: int, encoder: PromptEncoder, device: torch.device, args: Any
) -> tuple[int, list[dict[str, Any]] | None]:
    """What `save_rollout` was given, with pixels; (0, None) for a checkpoint that has none, such as stock TRL's.

    Raises:
        ValueError: an image that the rollout needs cannot be read any more, the file of this process is lost or
            broken, or the checkpoint is in the middle of a rollout whose shape is another now.
    """
    path = file_of(checkpoint, rank)
    known = path if path.is_file() else file_of(checkpoint, 0)
    if not known.is_file():
        logger.warning("%s holds no rollout, as of stock TRL: a new one begins, also in the middle of one", checkpoint)
        return 0, None
    content = load_state(known)
    now = shape_of(args)
    changed = [f"{name} {old}, now {now[name]}" for name, old in content["shape"].items() if old != now[name]]
    if changed and content["batches"]:
        raise ValueError(
            f"{checkpoint} lies in the middle of a rollout made with {'; '.join(changed)}: resume with the former, or "
            "from a checkpoint between two rollouts"
        )
    if changed:
        return 0, None  # a rollout of the new shape begins
    if known != path:
        raise ValueError(f"{path} is missing: the checkpoint cannot be resumed from, take an earlier one")
    batches = content["batches"] and restore_pixels(content["batches"], encoder)
    return content["step"], batches and [send_to_device(batch, device, skip_keys="samples") for batch in batches]


def strip_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with what its samples are made of in their place."""
    samples = batch.get("samples")
    if samples is None:
        return batch
    return {**batch, "samples": [(s.messages, prompt_refs(s), s.videos, s.tools, s.later) for s in samples]}


def restore_pixels(batches: list[dict[str, Any]], encoder: PromptEncoder) -> list[dict[str, Any]]:
    """The batches with samples again; all of a rollout are encoded together, so that each image is processed once."""
    held = [sample for batch in batches for sample in batch.get("samples") or []]
    rows = [
        {"prompt": messages, "images": images, "videos": videos, TOOLS_COLUMN: tools}
        for messages, images, videos, tools, _ in held
    ]
    prompts = drop_images(encoder.encode(rows))
    samples = iter([with_segment(prompt, entry[-1]) for prompt, entry in zip(prompts, held, strict=True)])
    return [
        {**batch, "samples": [next(samples) for _ in batch["samples"]]} if "samples" in batch else batch
        for batch in batches
    ]
