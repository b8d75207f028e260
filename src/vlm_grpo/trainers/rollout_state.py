"""The current rollout in a checkpoint: one rollout may serve several steps, and a checkpoint can fall between them.

Without it a resumed run samples again and diverges. Pixels are not written: the images are processed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from vlm_grpo.records import Message
from vlm_grpo.rollouts.encoder import TOOLS_COLUMN, PromptEncoder, drop_images
from vlm_grpo.rollouts.segment import prompt_refs, with_segment
from vlm_grpo.trainers.state_file import FOLDER, load_state

logger = logging.getLogger(__name__)

SHAPE = ("world_size", "per_device_train_batch_size", "steps_per_generation", "num_iterations", "num_generations")
Batches = list[dict[str, Any]]


class RolloutState:
    """The current rollout as a part of checkpoints, with the number of micro-steps in all.

    Args:
        args: of the training; those that determine the shape of a rollout are saved with it.
        encoder: encodes the prompts of a restored rollout again.
        device: to which its tensors go.
        read: returns the number of micro-steps, and the micro-batches of the rollout; None between rollouts.
        restore: takes what a checkpoint holds of these.
    """

    state_file = f"{FOLDER}/rollout_{{rank}}.safetensors"

    def __init__(
        self,
        args: Any,
        encoder: PromptEncoder,
        device: torch.device,
        read: Callable[[], tuple[int, Batches | None]],
        restore: Callable[[int, Batches | None], None],
    ) -> None:
        self.args, self.encoder, self.device = args, encoder, device
        self.read, self.restore = read, restore

    @property
    def shape(self) -> dict[str, Any]:
        """The settings that determine the shape of a rollout and its contents."""
        args = self.args
        contents = {"algorithm": getattr(args, "algorithm", None), "use_vllm": args.use_vllm}
        return {**{name: getattr(args, name) for name in SHAPE}, **contents, "beta above 0": args.beta > 0}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, without pixels."""
        step, batches = self.read()
        return {"step": step, "batches": batches and [strip_pixels(batch) for batch in batches], "shape": self.shape}

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Restore the rollout of a checkpoint, with pixels; a rollout of another shape that is used up is left.

        Raises:
            ValueError: an image of the rollout cannot be read any more, or the checkpoint is in the middle of a rollout
                whose shape has changed.
        """
        if self._is_of_another_shape(state, Path(where).parents[1]):
            self.restore(0, None)  # a rollout of the new shape begins
            return
        batches = state["batches"] and restore_pixels(state["batches"], self.encoder)
        batches = batches and [send_to_device(batch, self.device, skip_keys="samples") for batch in batches]
        self.restore(state["step"], batches)

    def check_missing(self, checkpoint: Path) -> None:
        """Check that a checkpoint without the rollout of this process can be resumed from, as one of stock TRL can.

        Raises:
            ValueError: the file of this process is lost, or the checkpoint is in the middle of a rollout of fewer
                processes.
        """
        first = checkpoint / self.state_file.format(rank=0)
        if not first.is_file():
            logger.warning(
                "%s holds no rollout, like those of stock TRL: a new one begins, even in the middle of one", checkpoint
            )
        elif not self._is_of_another_shape(load_state(first), checkpoint):
            path = checkpoint / self.state_file.format(rank=self.args.process_index)
            raise ValueError(f"{path} is missing: the checkpoint cannot be resumed from, use an earlier one")

    def _is_of_another_shape(self, state: Mapping[str, Any], checkpoint: Path) -> bool:
        now = self.shape
        changed = [f"{name} {old}, now {now[name]}" for name, old in state["shape"].items() if old != now[name]]
        if changed and state["batches"]:
            raise ValueError(
                f"{checkpoint} lies in the middle of a rollout made with {'; '.join(changed)}: resume with the "
                "original values, or from a checkpoint saved between rollouts"
            )
        return bool(changed)


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
