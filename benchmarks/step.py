"""A GRPO step of stock TRL and of this package, side by side: same model, prompts and number of tokens.

python benchmarks/step.py [--side 448] [--completion 128] [--generations 8] [--steps 3] [--beta 0] [--frozen]
The model is a random Qwen2.5-VL of 25 million parameters on a CPU; with --large one of the 3B's shape, in bfloat16,
for a GPU. Each phase is timed where TRL enters it: the rollout (`_generate`), what is between it and the loss (rewards,
old and reference log-probabilities), and the update (loss, backward, optimizer).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from vlm_grpo.tiny import TinySize, build_tiny_qwen

SMALL = TinySize(
    hidden=512, layers=6, heads=8, intermediate=1536, vision_hidden=256, vision_layers=6, vision_heads=8, vocabulary=512
)
LARGE = TinySize(
    hidden=2048, layers=36, heads=16, intermediate=11008, vision_hidden=1280, vision_layers=32, vision_heads=16,
    vocabulary=151_936,
)  # fmt: skip
PHASES = ("rollout", "scoring", "update")


class Clock:
    """Seconds spent in the phases of the current step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)

    def around(self, phase: str, inner: Callable) -> Callable:
        """The function, timed; a phase inside another is taken off it."""

        def timed(*args: Any, **options: Any) -> Any:
            before = dict(self.spent)
            start = now()
            result = inner(*args, **options)
            nested = sum(self.spent[name] - before[name] for name in PHASES)
            self.spent[phase] += now() - start - nested
            return result

        return timed


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def half_of_them(completions: list, **columns: Any) -> list[float]:
    """Every group has a signal, whatever is sampled."""
    return [float(number % 2) for number in range(len(completions))]


def rows(prompts: int, side: int) -> Dataset:
    """Prompts with one square image each."""
    random = np.random.RandomState(0)
    pictures = [Image.fromarray(random.randint(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(prompts)]
    question = [{"role": "user", "content": "What color is the shape? " * 4}]
    return Dataset.from_list([{"prompt": question, "image": picture} for picture in pictures])


def build(kind: str, folder: Path, options: argparse.Namespace) -> tuple[Any, Clock]:
    """A trainer of a kind (`trl` or `ours`) that is about to train, and the clock of its phases."""
    from trl import GRPOConfig, GRPOTrainer

    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer

    trainer_class, config = {"trl": (GRPOTrainer, GRPOConfig), "ours": (VLMGRPOTrainer, VLMGRPOConfig)}[kind]
    args = config(
        output_dir=str(folder / kind),
        per_device_train_batch_size=options.generations,
        num_generations=options.generations,
        max_completion_length=options.completion,
        generation_kwargs={"min_new_tokens": options.completion},
        max_steps=options.steps + 1,  # the first warms up
        beta=options.beta,
        bf16=options.large,
        use_cpu=not options.large,
        gradient_checkpointing=options.large,
        model_init_kwargs={"dtype": "bfloat16"} if options.large else None,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **({"freeze_vision_modules": options.frozen} if kind == "ours" else {}),
    )
    data = rows(options.steps + 1, options.side)
    trainer = trainer_class(str(folder / "model"), half_of_them, args, train_dataset=data)
    if options.frozen and kind == "trl":
        trainer.model.model.visual.requires_grad_(False)
    clock = Clock()
    trainer._generate = clock.around("rollout", trainer._generate)
    trainer._generate_and_score_completions = clock.around("scoring", trainer._generate_and_score_completions)
    return trainer, clock


def measure(trainer: Any, clock: Clock, steps: int) -> list[dict[str, float]]:
    """Seconds of each phase for each step after the first."""
    from transformers import TrainerCallback

    marks: list[tuple[float, dict[str, float]]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **options: Any) -> None:
            marks.append((now(), dict(clock.spent)))

        def on_step_end(self, *args: Any, **options: Any) -> None:
            began, before = marks.pop()
            spent = {name: clock.spent[name] - before[name] for name in PHASES}
            spent["update"] = now() - began - spent["rollout"] - spent["scoring"]
            measured.append(spent)

    measured: list[dict[str, float]] = []
    trainer.add_callback(Watch())
    trainer.train()
    return measured[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=448, help="of the image, in pixels")
    parser.add_argument("--completion", type=int, default=128, help="tokens of every completion")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--frozen", action="store_true", help="freeze the vision tower")
    parser.add_argument("--large", action="store_true", help="the 3B's shape, on a GPU")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    size = LARGE if options.large else SMALL
    model, processor = build_tiny_qwen(size, max_pixels=4096 * 28 * 28)
    count = sum(parameter.numel() for parameter in model.parameters())
    (model.bfloat16() if options.large else model).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    table: dict[str, dict[str, float]] = {}
    for kind in ("trl", "ours"):
        trainer, clock = build(kind, folder, options)
        if options.large:
            torch.cuda.reset_peak_memory_stats()
        steps = measure(trainer, clock, options.steps)
        table[kind] = {name: statistics.median(step[name] for step in steps) for name in PHASES}
        table[kind]["step"] = statistics.median(sum(step.values()) for step in steps)
        if options.large:
            table[kind]["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        prompt = trainer.state.log_history[0]["num_tokens"] / options.generations - options.completion
        del trainer
    print(f"{count / 1e6:.0f} M parameters, P {prompt:.0f}, C {options.completion}, G {options.generations}")
    print("| phase | TRL, s | ours, s | ratio |\n|---|---|---|---|")
    for name in table["trl"]:
        stock, ours = table["trl"][name], table["ours"][name]
        print(f"| {name} | {stock:.3f} | {ours:.3f} | {stock / ours:.2f} |")


if __name__ == "__main__":
    main()
