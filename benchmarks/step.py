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
from torch.utils.flop_counter import FlopCounterMode

from vlm_grpo.tiny import TinySize, build_tiny_qwen

SMALL = TinySize(
    hidden=512, layers=6, heads=8, intermediate=1536, vision_hidden=256, vision_layers=6, vision_heads=8, vocabulary=512
)
LARGE = TinySize(
    hidden=2048, layers=36, heads=16, intermediate=11008, vision_hidden=1280, vision_layers=32, vision_heads=16,
    vocabulary=151_936,
)  # fmt: skip
PHASES = ("rollout", "scoring", "update")


class Meter:
    """What the phases of the current step took: seconds, or floating-point operations while `counter` is set."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.counter: FlopCounterMode | None = None

    def now(self) -> float:
        if self.counter is not None:
            return self.counter.get_total_flops()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, phase: str, inner: Callable) -> Callable:
        """The function, measured; a phase inside another is taken off it."""

        def measured(*args: Any, **options: Any) -> Any:
            before = dict(self.spent)
            start = self.now()
            result = inner(*args, **options)
            nested = sum(self.spent[name] - before[name] for name in PHASES)
            self.spent[phase] += self.now() - start - nested
            return result

        return measured


def half_of_them(completions: list, **columns: Any) -> list[float]:
    """Every group has a signal, whatever is sampled."""
    return [float(number % 2) for number in range(len(completions))]


def rows(prompts: int, side: int) -> Dataset:
    """Prompts with one square image each."""
    random = np.random.RandomState(0)
    pictures = [Image.fromarray(random.randint(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(prompts)]
    question = [{"role": "user", "content": "What color is the shape? " * 10}]
    return Dataset.from_list([{"prompt": question, "image": picture} for picture in pictures])


def build(kind: str, folder: Path, options: argparse.Namespace) -> tuple[Any, Meter]:
    """A trainer of a kind (`trl` or `ours`) that is about to train, and the meter of its phases."""
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
        max_steps=options.steps + 2,  # the first warms up, the last is counted
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
    data = rows(options.steps + 2, options.side)
    trainer = trainer_class(str(folder / "model"), half_of_them, args, train_dataset=data)
    if options.frozen and kind == "trl":
        trainer.model.model.visual.requires_grad_(False)
    meter = Meter()
    trainer._generate = meter.around("rollout", trainer._generate)
    trainer._generate_and_score_completions = meter.around("scoring", trainer._generate_and_score_completions)
    return trainer, meter


def measure(trainer: Any, meter: Meter) -> list[dict[str, float]]:
    """Each phase of each step after the first: seconds, and of the last step operations."""
    from transformers import TrainerCallback

    steps: list[dict[str, float]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if state.global_step == args.max_steps - 1:
                meter.counter = FlopCounterMode(display=False)
                meter.counter.__enter__()
            self.began, self.before = meter.now(), dict(meter.spent)

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            spent = {name: meter.spent[name] - self.before[name] for name in PHASES}
            spent["update"] = meter.now() - self.began - spent["rollout"] - spent["scoring"]
            steps.append({**spent, "step": sum(spent.values())})
            if meter.counter is not None:
                meter.counter.__exit__(None, None, None)

    trainer.add_callback(Watch())
    trainer.train()
    return steps[1:]


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
    seconds, operations, memory = {}, {}, {}
    for kind in ("trl", "ours"):
        trainer, meter = build(kind, folder, options)
        if options.large:
            torch.cuda.reset_peak_memory_stats()
        *timed, counted = measure(trainer, meter)
        seconds[kind] = {name: statistics.median(step[name] for step in timed) for name in timed[0]}
        operations[kind] = counted
        memory[kind] = torch.cuda.max_memory_allocated() / 2**30 if options.large else 0.0
        prompt = trainer.state.log_history[0]["num_tokens"] / options.generations - options.completion
        del trainer
    print(f"{count / 1e6:.0f} M parameters, P {prompt:.0f}, C {options.completion}, G {options.generations}")
    print("| phase | TRL, s | ours, s | ratio | ratio of operations |\n|---|---|---|---|---|")
    for name in seconds["trl"]:
        stock, ours = seconds["trl"][name], seconds["ours"][name]
        counts = operations["trl"][name], operations["ours"][name]
        expected = f"{counts[0] / counts[1]:.2f}" if counts[1] else ""
        print(f"| {name} | {stock:.3f} | {ours:.3f} | {stock / ours:.2f} | {expected} |")
    if options.large:
        print(f"peak memory: {memory['trl']:.1f} and {memory['ours']:.1f} GiB")


if __name__ == "__main__":
    main()
