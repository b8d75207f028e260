"""The stages of the quickstart: data, supervised warm start, evaluation, reinforcement learning, report.

vlm-grpo quickstart [--trainer grpo|rloo] [--seed N] [--output_dir DIR]
Reinforcement learning runs the actual command (`grpo_jsonl.py`) in a separate process; this file only prepares it and
compares the results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.cli.command_parser import CommandParser
from vlm_grpo.quickstart.run import QuickstartRun
from vlm_grpo.synthetic.digits import DigitFiles

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm_grpo.evaluation import Evaluation
    from vlm_grpo.evaluation.report.chart import Curve


TASK = "default"
LIMITS = (0.60, 0.85)  # maximum held-out accuracy before training, minimum after it
GENERATION: dict[str, Any] = {"batch_size": 99, "max_completion_length": 24}
# One thread, so that results do not depend on the number of cores; such a small model gains little from more. If a user
# sets more, waiting threads sleep: on a busy machine, busy-waiting takes five times as long.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_MININTERVAL": "0.5",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def main(argv: list[str] | None = None) -> int:
    """Run all stages and return the exit status: 0 if the accuracy improved as expected."""
    options = parser().parse_args(argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder = Path(options.output_dir or f"quickstart_output/{options.trainer}_seed{options.seed}")
    run = QuickstartRun(options.trainer, options.seed, folder)
    print(f"Teaching a tiny Qwen2.5-VL to read handwritten digits with {run.trainer.upper()}; results go to {folder}")
    try:
        before, after, curve, command = run_stages(run)
    except subprocess.CalledProcessError as error:
        print(f"The training failed with status {error.returncode}. The end of its log:\n{error.output}")
        return 1
    save_results(run, before, after, curve, command)
    return check_accuracies(before.main.value, after.main.value)


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    flags = CommandParser("vlm-grpo quickstart", description=__doc__.splitlines()[0])
    flags.add_argument("--trainer", choices=("grpo", "rloo"), default="grpo", help="trainer (default: grpo)")
    flags.add_argument("--seed", type=int, default=0, help="random seed of weights, warm start and training")
    flags.add_argument("--output_dir", help="default: quickstart_output/TRAINER_seedN")
    return flags


def run_stages(run: QuickstartRun) -> tuple[Evaluation, Evaluation, Curve, list[str]]:
    """Run all stages; return the evaluations before and after RL, the reward curve and the training command."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    files = prepare_digits(run)
    model, processor = warm_start(run, files)
    before = evaluate_stage(run, "before", model, processor, files)
    command = training_command(run, files)
    curve = train(run, command)
    after = evaluate_stage(run, "after", *load(run.trained), files)
    return before, after, curve, command


def prepare_digits(run: QuickstartRun) -> DigitFiles:
    """Write the images and jsonl files."""
    from vlm_grpo.synthetic import write_digits

    with run.stage("digits", 1, "set") as bar:
        files = write_digits(run.folder / "data")
        bar.update()
    return files


def load_digits(run: QuickstartRun, path: Path, images: Path) -> Dataset:
    """Return the rows of one jsonl file."""
    from vlm_grpo.data import load_dataset

    return load_dataset(str(path), image_folders=str(images), task=TASK)


def warm_start(run: QuickstartRun, files: DigitFiles) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build the model, train it on the answer format with partly wrong labels, and save it."""
    import torch

    from vlm_grpo.quickstart.warm_start import completion, warm_up
    from vlm_grpo.tiny import QUICKSTART, build_tiny_qwen

    torch.manual_seed(run.seed)
    rows = load_digits(run, files.train, files.images)
    prompt_texts = [block["text"] for turn in rows[0]["prompt"] for block in turn["content"] if block["type"] == "text"]
    corpus = [*prompt_texts, completion(" ".join("0123456789")), "user assistant system"]
    model, processor = build_tiny_qwen(QUICKSTART, corpus=corpus, seed=run.seed)
    settings = run.settings
    with run.stage("warm start", settings.warm_steps, "step") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        options = {"steps": settings.warm_steps, "batch_size": settings.warm_batch, "seed": run.seed}
        warm_up(model, processor, rows, on_step=show, **options)
    model.save_pretrained(run.warm)
    processor.save_pretrained(run.warm)
    return model, processor


def load(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a saved model and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def evaluate_stage(
    run: QuickstartRun, name: str, model: PreTrainedModel, processor: ProcessorMixin, files: DigitFiles
) -> Evaluation:
    """Return greedy answers to all held-out images."""
    from vlm_grpo.evaluation import evaluate

    rows = load_digits(run, files.held_out, files.images)
    with run.stage(name, len(rows), "image") as bar:
        evaluation = evaluate(model, processor, rows, task=TASK, seed=run.seed, on_batch=bar.update, **GENERATION)
        bar.set_postfix(accuracy=str(evaluation.main))
    return evaluation


def training_command(run: QuickstartRun, files: DigitFiles) -> list[str]:
    """Return the command line of the training, as a user would type it."""
    import vlm_grpo

    settings = run.settings
    flags = {
        "trainer": run.trainer,
        "model_name_or_path": run.warm,
        "data_file_paths": files.train,
        "image_folders": files.images,
        "task_type": TASK,
        "reward_funcs": ["accuracy", "format"],
        "output_dir": run.trained,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch,
        "num_generations": settings.num_generations,
        "max_completion_length": GENERATION["max_completion_length"],
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "beta": 0.0,
        "seed": run.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    words = [sys.executable, str(Path(vlm_grpo.__file__).with_name("grpo_jsonl.py"))]
    for name, value in flags.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def train(run: QuickstartRun, command: list[str]) -> Curve:
    """Run the training command with a progress bar and a log file; return the reward curve.

    Raises:
        subprocess.CalledProcessError: the command failed; `output` has the end of its log.
    """
    log_path = run.folder / f"{run.trainer}.log"
    tail: deque[str] = deque(maxlen=40)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        run.stage("training", run.settings.steps, "step") as bar,
        log_path.open("w", encoding="utf-8") as log,
        child_process(command, environment) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            tail.append(line)
            if accuracy := re.search(r"'rewards/accuracy/mean': '?([\d.]+)", line):
                bar.set_postfix(accuracy=f"{float(accuracy[1]):.2f}", refresh=False)
                bar.update()
        if status := process.wait():
            raise subprocess.CalledProcessError(status, command, output="".join(tail))
    return reward_curve(run.trained)


@contextmanager
def child_process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Start a process with line-buffered output, and terminate it at the end of the block."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def reward_curve(folder: Path) -> Curve:
    """Return the accuracy of sampled completions at every step, from the trainer's log."""
    from vlm_grpo.evaluation.report.chart import Curve

    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    points = [(entry["step"], entry["rewards/accuracy/mean"]) for entry in history if "rewards/accuracy/mean" in entry]
    return Curve([step for step, _ in points], [value for _, value in points], "accuracy reward of sampled answers")


def save_results(run: QuickstartRun, before: Evaluation, after: Evaluation, curve: Curve, command: list[str]) -> None:
    """Write report, picture and results, and print the table."""
    from vlm_grpo.evaluation.results import versions
    from vlm_grpo.io import write_whole
    from vlm_grpo.quickstart.outputs import write_outputs

    with run.stage("report", 1, "page") as bar:
        write_outputs(run, before, after, curve, command)
        bar.update()
    results = {
        "trainer": run.trainer,
        "seed": run.seed,
        "before": {name: asdict(metric) for name, metric in before.metrics.items()},
        "after": {name: asdict(metric) for name, metric in after.metrics.items()},
        "seconds": run.seconds,
        "settings": asdict(run.settings),
        "versions": versions(),
    }
    write_whole(run.folder / "results.json", json.dumps(results, indent=1) + "\n")
    print_table(run, before, after, curve)


def print_table(run: QuickstartRun, before: Evaluation, after: Evaluation, curve: Curve) -> None:
    """Print the results table and the paths of the output files."""
    tenth = max(1, len(curve.values) // 10)
    first, last = (sum(part) / len(part) for part in (curve.values[:tenth], curve.values[-tenth:]))
    rows = [
        ("", "before", f"after {run.trainer.upper()}"),
        *((f"held-out {name}", str(before.metrics[name]), str(after.metrics[name])) for name in before.metrics),
        ("sampled accuracy", f"{first:.1%}", f"{last:.1%}"),
    ]
    print("\n" + "\n".join(f"{name:<20}  {left:<22}  {right:<22}".rstrip() for name, left, right in rows))
    print(f"{len(before.predictions)} held-out images, greedy answers, 95 % intervals; seed {run.seed}.")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in run.seconds.items()))
    print(f"report:  {run.folder / 'report.html'}\npicture: {run.folder / 'picture.png'}")


def check_accuracies(before: float | None, after: float | None) -> int:
    """Return 0 if the accuracies are within LIMITS; otherwise print the reason and return 1."""
    if before is None or after is None:
        raise ValueError("the evaluation has no accuracy")
    if before <= LIMITS[0] and after >= LIMITS[1]:
        return 0
    expected = f"at most {LIMITS[0]:.0%} before and at least {LIMITS[1]:.0%} after"
    print(f"Unexpected: accuracy {before:.1%} before and {after:.1%} after; expected {expected}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
