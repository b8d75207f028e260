"""`vlm-grpo evaluate`: greedy answers of a model or checkpoint to a data set, scored as in training.

Writes predictions.jsonl (a line per example), results.json (metrics with intervals, versions, settings) and
report.html to --output_dir. `accelerate launch -m vlm_grpo.cli.evaluate ...` shards the rows over processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("vlm_grpo", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "pillow")
DATA_FLAGS = ("image_folders", "reward_method", "format_prompt", "prompt_key", "answer_key", "image_key")


def parser() -> argparse.ArgumentParser:
    """The flags; those that training has too mean the same here."""
    flags = argparse.ArgumentParser(prog="vlm-grpo evaluate", description=__doc__.split("\n\n")[1], allow_abbrev=False)
    add = flags.add_argument
    add("--model_name_or_path", required=True, help="model, checkpoint folder or adapter folder")
    add("--data_file_paths", help="jsonl files, separated by ':' (a.jsonl:b.jsonl)")
    add("--image_folders", help="image folder of each jsonl file, separated by ':'; one may serve all")
    add("--dataset_name", help="Hugging Face data: org/name@split, a save_to_disk folder, or a file")
    add("--task_type", default="default", help="task: its prompt and metric (`vlm-grpo tasks`)")
    add("--output_dir", required=True, help="folder for results.json, predictions.jsonl and report.html")
    add("--reward_method", help="accuracy method of each jsonl file, separated by ':'; a record's own wins")
    add("--format_prompt", help="your own prompt template, a jinja file")
    add("--prompt_key", help="column with the question")
    add("--answer_key", help="column with the answer")
    add("--image_key", help="column with the image or images")
    add("--allow_outside", action="store_true", help="allow image paths that leave their image folder through '..'")
    add("--batch_size", type=positive, default=8, help="rows per generate call (default: 8)")
    add("--limit", type=positive, help="evaluate only the first rows")
    add("--max_completion_length", type=positive, default=256, help="tokens per completion (default: 256, as in TRL)")
    add("--min_pixels", type=positive, help="images with fewer pixels are enlarged")
    add("--max_pixels", type=positive, help="images with more pixels are shrunk")
    add("--reasoning_encoder", help="sentence encoder of the reasoning reward, name or folder")
    add("--reasoning_device", help="where the sentence encoder runs, such as cuda (default: cpu)")
    add("--reasoning_threshold", type=float, help="cosine above which two steps match (default: the encoder's own)")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="weights (default: auto)")
    add("--use_cpu", action="store_true", help="stay on the CPU")
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default: 0)")
    return flags


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit status: 0 done, 2 a mistake in flags or data."""
    flags = parser()
    options = flags.parse_args(argv)
    if bool(options.data_file_paths) == bool(options.dataset_name):
        flags.error("give the data with one of --data_file_paths and --dataset_name")
    try:
        dataset = load_rows(options)
    except (ValueError, KeyError, FileNotFoundError) as error:
        print(f"vlm-grpo evaluate: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    try:
        run(options, dataset)
    except ImportError as error:
        print(f"vlm-grpo evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def load_rows(options: argparse.Namespace) -> Any:
    """The data set that the flags name, checked."""
    from vlm_grpo.data import load_dataset

    given = {name: getattr(options, name) for name in DATA_FLAGS if getattr(options, name) is not None}
    return load_dataset(
        options.data_file_paths or options.dataset_name,
        task=options.task_type,
        allow_outside=options.allow_outside,
        **given,
    )


def run(options: argparse.Namespace, dataset: Any) -> None:
    """Load the model, complete the rows of this process, and write what all processes found."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from vlm_grpo.evaluation import predict, shard, summary, unique_rows

    state = PartialState(cpu=options.use_cpu)
    model, processor = load_model(options, state.device)
    rows = min(options.limit or len(dataset), len(dataset))
    numbers = shard(rows, state.process_index, state.num_processes)
    with progress_bar(len(numbers), state.is_main_process) as bar:
        mine = predict(
            model,
            processor,
            dataset,
            numbers,
            task=options.task_type,
            reward_options=reward_options(options),
            batch_size=options.batch_size,
            max_completion_length=options.max_completion_length,
            on_batch=bar.update,
        )
    evaluation = summary(options.task_type, unique_rows(gather_object(mine)), options.seed)
    if state.is_main_process:
        write_results(options, evaluation, dataset)
        show(evaluation, options.output_dir)
    if state.num_processes > 1:
        state.destroy_process_group()


def reward_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the rewards that the flags name."""
    return {name: getattr(options, f"reasoning_{name}") for name in ("encoder", "device", "threshold")}


def load_model(options: argparse.Namespace, device: Any) -> tuple[Any, Any]:
    """The model on its device and its processor with the pixel limits of the flags."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlm_grpo.loading import set_pixel_limits
    from vlm_grpo.trainers.media import tell_videos_from_images

    processor = AutoProcessor.from_pretrained(options.model_name_or_path)
    set_pixel_limits(processor, options.min_pixels, options.max_pixels)
    model = AutoModelForImageTextToText.from_pretrained(options.model_name_or_path, dtype=options.dtype)
    tell_videos_from_images(model)
    return model.to(device), processor


def progress_bar(total: int, is_shown: bool) -> Any:
    """A bar that counts rows."""
    from tqdm import tqdm

    return tqdm(total=total, desc="evaluating", unit="row", disable=not is_shown)


def write_results(options: argparse.Namespace, evaluation: Any, dataset: Sequence[Any]) -> None:
    """Leave predictions.jsonl, results.json and report.html in the output folder."""
    from dataclasses import asdict

    from vlm_grpo.evaluation.report import evaluation_report

    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction, ensure_ascii=False, default=str) + "\n" for prediction in evaluation.predictions]
    write_whole(folder / "predictions.jsonl", "".join(lines))
    results = {
        "task": evaluation.task,
        "examples": len(evaluation.predictions),
        "metrics": {name: asdict(metric) for name, metric in evaluation.metrics.items()},
        "settings": vars(options),
        "versions": versions(),
    }
    write_whole(folder / "results.json", json.dumps(results, indent=1, default=str) + "\n")
    evaluation_report(folder / "report.html", f"Evaluation of {options.model_name_or_path}", evaluation, dataset)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def versions() -> dict[str, str | None]:
    """Installed versions of what an evaluation depends on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def show(evaluation: Any, folder: str) -> None:
    """Print one line per metric and where the files are."""
    print(f"{'metric':<24} mean [95 % interval]       examples")
    for name, metric in evaluation.metrics.items():
        print(f"{name:<24} {metric!s:<26} {metric.count}")
    print(f"written: {Path(folder) / 'results.json'}, predictions.jsonl, report.html")


if __name__ == "__main__":
    sys.exit(main())
