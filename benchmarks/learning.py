"""Does a training on a GPU learn? GRPO on handwritten digits, with a model of 100 million parameters.

python benchmarks/learning.py --large --output benchmarks/learning_gpu.json   on a GPU, about two minutes
python benchmarks/learning.py --rehearse                                      a million parameters, few steps, on a CPU

As in the quickstart: a new Qwen2.5-VL is taught the form of an answer and partly wrong labels (most odd numbers one too
high), then the trainer and its rewards mend that. The curve is the share of right answers among sampled completions;
held-out digits are read greedily before and after. The output file is written after every step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from computer import describe
from tables import learning_line

from vlm_grpo.data import load_dataset
from vlm_grpo.evaluation import evaluate
from vlm_grpo.io import write_whole
from vlm_grpo.quickstart.warm_start import completion, warm_up
from vlm_grpo.synthetic import write_digits
from vlm_grpo.tiny import QUICKSTART, TinySize, build_tiny_qwen

LARGE = TinySize(
    hidden=768, layers=12, heads=12, intermediate=2304, vision_hidden=384, vision_layers=6, vision_heads=6,
    vocabulary=512,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How long each part takes, for a model and a device."""

    size: TinySize
    device: str
    warm_steps: int
    warm_rate: float
    steps: int
    prompts: int  # of a step, with eight completions each
    learning_rate: float


PLANS = {
    "large": Plan(LARGE, "cuda", 250, 3e-4, 40, 32, 5e-5),
    "rehearse": Plan(QUICKSTART, "cpu", 3, 1e-3, 2, 2, 2e-4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--large", action="store_true", help="100 million parameters, on a GPU")
    size.add_argument("--rehearse", action="store_true", help="a million parameters, a few steps, on a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for step_report.py; written after each step")
    options = parser.parse_args()
    if options.large and not torch.cuda.is_available():
        parser.error("--large needs a GPU")
    result: dict[str, Any] = {"computer": describe(), "curve": [], "seconds": {}}

    def save() -> None:
        if options.output:
            write_whole(options.output, json.dumps(result) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        learn(PLANS["large" if options.large else "rehearse"], Path(folder), result, save)
    print(learning_line(result))


def learn(plan: Plan, folder: Path, result: dict[str, Any], save: Callable[[], None]) -> None:
    """Teach, evaluate, train, evaluate; the result is saved as it grows."""
    began = time.perf_counter()

    def done(part: str) -> None:
        nonlocal began
        result["seconds"][part] = time.perf_counter() - began
        began = time.perf_counter()
        save()
        print(f"{part}: {result['seconds'][part]:.1f} s", flush=True)

    files = write_digits(folder / "data")
    rows, held_out = (
        load_dataset(str(path), image_folders=str(files.images)) for path in (files.train, files.held_out)
    )
    done("digits")
    model, processor = taught(plan, rows)
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    done("warm start")
    result["before"] = accuracy(model, processor, held_out)
    done("before")
    train(plan, model, processor, rows, folder / "run", result, save)
    done("training")
    result["after"] = accuracy(model, processor, held_out)
    done("after")


def taught(plan: Plan, rows: Any) -> tuple[Any, Any]:
    """Return a model that writes the form of an answer and mostly the labels that it was taught."""
    torch.manual_seed(0)
    asked = [block["text"] for turn in rows[0]["prompt"] for block in turn["content"] if block["type"] == "text"]
    corpus = [*asked, completion(" ".join("0123456789")), "user assistant system"]
    with torch.device(plan.device):
        model, processor = build_tiny_qwen(plan.size, corpus=corpus)
    warm_up(model, processor, rows, steps=plan.warm_steps, learning_rate=plan.warm_rate)
    return model, processor


def accuracy(model: Any, processor: Any, rows: Any) -> float:
    """Return the share of right greedy answers."""
    return evaluate(model, processor, rows, task="default", max_completion_length=24, batch_size=99).main.value


def train(
    plan: Plan, model: Any, processor: Any, rows: Any, folder: Path, result: dict[str, Any], save: Callable[[], None]
) -> None:
    """Run the trainer; the curve grows by the accuracy of every step."""
    from transformers import PrinterCallback, TrainerCallback

    from vlm_grpo import VLMGRPOConfig, VLMGRPOTrainer

    class Curve(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **options: Any) -> None:
            if "rewards/accuracy/mean" in logs:
                result["curve"].append(logs["rewards/accuracy/mean"])
                save()

    args = VLMGRPOConfig(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=8 * plan.prompts,
        num_generations=8,
        max_completion_length=24,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="linear",
        use_cpu=plan.device == "cpu",
        bf16=plan.device == "cuda",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rewards = ["accuracy", "format"]
    trainer = VLMGRPOTrainer(model, rewards, args, train_dataset=rows, processing_class=processor)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Curve())
    trainer.train()


if __name__ == "__main__":
    main()
