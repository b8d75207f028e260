"""A training that SIGTERM stops again and again, and the same one undisturbed, in this process or under torchrun.

python -m torch.distributed.run --nproc_per_node 2 -m tests.support.preempted MODEL FOLDER
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tests.trainers.test_resume import build, step_losses, weights_differ
from vlm_grpo.trainers.checkpoints import validate_checkpoint
from vlm_grpo.trainers.preemption import Preempted

STOPS = 10
LATE = {"steps_per_generation": 2, "num_iterations": 2}  # four steps to a rollout, so that stops fall inside


class Terminator(TrainerCallback):
    """Sends SIGTERM to this process, some seconds into the step that comes after some others.

    A quick machine takes several steps in that time: the second one waits for the signal.
    """

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps = steps
        self.timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.steps == 0:
            self.timer.start()
        elif self.steps < -1:
            self.timer.join()
        self.steps -= 1

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.timer.cancel()  # without its handler the signal would end this process


def trained(model: Path, folder: Path, terminator: Terminator | None = None, **changes: Any) -> Any:
    """A trainer that has gone on from the newest checkpoint of its folder."""
    options = {"kind": "grpo", "max_steps": 60, "save_steps": 100, "enable_jit_checkpoint": True, **LATE, **changes}
    trainer = build(options.pop("kind"), model, folder, **options)
    if terminator is not None:
        trainer.add_callback(terminator)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def stopped_at(model: Path, folder: Path, source: random.Random, rank: int, **changes: Any) -> int:
    """Train until SIGTERM at a random moment, on one process or on both at different times; return the step."""
    steps, delays = source.randrange(4), [source.uniform(0, 0.1) for _ in range(2)]
    signalled = source.choice([[0], [1], [0, 1]]) if "WORLD_SIZE" in os.environ else [0]
    terminator = Terminator(steps, delays[rank]) if rank in signalled else None
    try:
        trained(model, folder, terminator, **changes)
    except Preempted as stop:
        if terminator is not None:
            terminator.timer.join()
        assert stop.code == 143
        return stop.step
    raise AssertionError("the training was not stopped")


def compare(model: Path, folder: Path, rank: int = 0, count: int = STOPS, **changes: Any) -> list[int]:
    """Stop a training ten times and compare its end with that of an undisturbed one; return where it stopped."""
    source, stops, output = random.Random(0), [], folder / "stopped"
    for _ in range(count):
        stops.append(stopped_at(model, output, source, rank, **changes))
        assert validate_checkpoint(output / f"checkpoint-{stops[-1]}") is None
        assert not (output / "model.safetensors").exists()
    assert stops == sorted(set(stops)) and stops[-1] > count
    last, whole = trained(model, output, **changes), trained(model, folder / "whole", **changes)
    assert len(step_losses(whole)) == whole.args.max_steps and step_losses(last) == step_losses(whole)
    assert weights_differ(last, whole) == 0
    return stops


if __name__ == "__main__":
    steps = compare(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"]))
    print("stopped after", steps, flush=True)
    os._exit(0)  # see `shutdown_distributed`
