"""Flags of `vlm-grpo evaluate` and their validation. Imports nothing heavy."""

from __future__ import annotations

import argparse
import logging
import math
from typing import Any

from vlm_grpo.answer_space import ANSWER_SPACES
from vlm_grpo.cli.check import PRIVATE_HELP, add_hub_flag, task_name
from vlm_grpo.cli.command_parser import CommandParser
from vlm_grpo.cli.templates import KWARGS_HELP, PATH_HELP
from vlm_grpo.records import JsonObject

DESCRIPTION = "Evaluate a model, checkpoint or server on a data set, with the scoring of training."
SERVER_ONLY = ("base_url", "concurrency", "timeout", "retries")
logger = logging.getLogger(__name__)

LOCAL_ONLY = ("dtype", "batch_size", "max_image_tokens", "chat_template_path")
ENGINES = ("vllm", "sglang")
ENVIRONMENT_FLAGS = ("environment_options", "data_root", "candidates_per_episode", "fixed_correct_index")
EPISODE_DEFAULTS: dict[str, Any] = {
    "max_turns": 8,
    "tool_time_limit": 60.0,
    "tool_format": "auto",
    "reward_time_limit": 600.0,
}
DATA_FLAGS = (
    *("image_folders", "reward_method", "format_prompt"),
    *("prompt_key", "answer_key", "image_key", "video_key", "ignore_columns"),
)
# Settings without effect on predictions: they may differ when an evaluation is resumed.
FREE = (
    *("output_dir", "batch_size", "use_cpu", "overwrite", "limit", "use_huggingface_dataset"),
    *("base_url", "concurrency", "timeout", "retries", "agreement"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser; flags shared with training have the same meaning."""
    flags = CommandParser("vlm-grpo evaluate", description=DESCRIPTION)
    add = flags.add_argument
    add("--model_name_or_path", required=True, help="model, checkpoint folder, adapter folder, or the server's name")
    add("--data_file_paths", help="jsonl files, separated by ':' (a.jsonl:b.jsonl)")
    add("--image_folders", help="image folder of each jsonl file, separated by ':', or one folder for all")
    add("--dataset_name", help="Hugging Face data: org/name@split, a save_to_disk folder, or a file")
    add_hub_flag(flags)
    add("--task_type", default="default", type=task_name, help="task: its prompt and metrics (`vlm-grpo tasks`)")
    add("--output_dir", required=True, help="folder for results.json, predictions.jsonl and report.html")
    add("--overwrite", action="store_true", help="replace the results of an earlier evaluation in --output_dir")
    add("--reward_method", help="accuracy method of each jsonl file, separated by ':'; overridden by a record's own")
    add("--format_prompt", help="user-defined prompt template, a jinja file")
    add("--chat_template_kwargs", metavar="JSON", help=f"{KWARGS_HELP} (default: those of the model's training)")
    add("--prompt_key", help="column with the question")
    add("--answer_key", help="column with the answer")
    add("--image_key", help="column with the image or images")
    add("--video_key", help="column with the video or videos")
    add("--ignore_columns", nargs="+", metavar="COLUMN", help="columns of the data to ignore")
    add("--allow_outside", action="store_true", help="allow image paths that leave their image folder through '..'")
    add("--allow_private_urls", action="store_true", help=PRIVATE_HELP)
    add("--limit", type=positive, help="evaluate only the first N rows, or N episodes of an --environment without data")
    add("--group_by", metavar="COLUMN", help="also report all metrics for each value of this column")
    add("--max_completion_length", type=positive, default=256, help="tokens per completion (default: 256, as in TRL)")
    add("--min_pixels", type=positive, help="images with fewer pixels are enlarged")
    add("--max_pixels", type=positive, help="images with more pixels are shrunk")
    add("--max_image_tokens", type=positive, help="maximum number of tokens per image, in any model family")
    add("--reasoning_encoder", help="sentence encoder of the reasoning reward, name or folder")
    add("--reasoning_device", help="device of the sentence encoder, such as cuda (default: cpu)")
    add(
        "--reasoning_threshold",
        type=float,
        help="cosine similarity above which two steps match (default: the encoder's)",
    )
    add("--seed", type=int, default=0, help="random seed of sampling and bootstrap intervals (default: 0)")
    _add_sampling(flags)
    _add_episodes(flags)
    _add_backends(flags)
    return flags


def _add_sampling(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument_group("sampling instead of greedy decoding").add_argument
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top_p", type=float, default=1.0, help="nucleus sampling: probability mass to sample from (default: 1)")
    add("--num_samples", type=int, default=1, help="completions per row; metrics are the mean over them (default: 1)")
    add(
        "--pass_k",
        type=int,
        nargs="+",
        default=[],
        metavar="K",
        help="pass@K: probability that one of K completions is correct",
    )


def _add_episodes(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument_group("episodes with tools").add_argument
    add(
        "--environment", nargs="+", help="names (`vlm-grpo environments`) or file.py:Class; if several, rows select one"
    )
    add(
        "--environment_options",
        metavar="JSON",
        help="environment options as a JSON object; with several environments, keyed by name",
    )
    add("--data_root", help="--environment pick_image: folder with the candidate images")
    add("--candidates_per_episode", type=int, help="--environment pick_image: number of candidate images (default: 4)")
    add(
        "--fixed_correct_index",
        type=int,
        help="--environment pick_image: index of the correct image (default: 0); -1 is random",
    )
    add("--max_turns", type=positive, help="maximum number of assistant turns per episode (default: 8)")
    add("--tool_time_limit", type=float, help="time limit of a tool call in seconds (default: 60)")
    add("--reward_time_limit", type=float, help="time limit of each method of an environment in seconds (default: 600)")
    formats = ("auto", "native", "hermes", "tags")
    add("--tool_format", choices=formats, help="format of tool descriptions and calls (default: auto)")
    add("--tool_protocol", choices=formats, action=RenamedFlag, dest="tool_format", help=argparse.SUPPRESS)


def _add_backends(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument_group("backend of the completions").add_argument
    add(
        "--backend",
        choices=("local", *ENGINES, "openai"),
        default="local",
        help="local: transformers in this process; vllm: in this process, or on servers (--base_url); sglang: on "
        "servers; openai: an OpenAI-compatible server",
    )
    add(
        "--agreement",
        type=positive,
        metavar="N",
        help="also complete N rows greedily with transformers in this process, and print how far both agree",
    )
    add("--engine_options", metavar="JSON", help="vllm in this process: further arguments of vllm.LLM")
    add("--batch_size", type=positive, help="local: completions per generate call (default: 8)")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="local: data type of the weights (default: auto)",
    )
    add("--chat_template_path", metavar="FILE", help=f"local: {PATH_HELP}")
    add("--use_cpu", action="store_true", help="local: use the CPU")
    add(
        "--base_url",
        help="openai: such as http://localhost:8000/v1; the API key is read from OPENAI_API_KEY. vllm, sglang: "
        "servers, without /v1, separated by commas",
    )
    add("--concurrency", type=positive, help="openai: concurrent requests (default: 8)")
    add("--timeout", type=float, help="openai: time limit of a request in seconds (default: 300)")
    add("--retries", type=int, help="openai: retries of a failed request (default: 3)")
    add("--answer_space", choices=ANSWER_SPACES, help="coordinates of the model's boxes (default: its family's)")


class RenamedFlag(argparse.Action):
    """A flag under its old name, which sets the new flag and warns."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        logger.warning("%s has been renamed to --%s; the old name still works", option_string, self.dest)
        setattr(namespace, self.dest, values)


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def validate(options: argparse.Namespace) -> list[str]:
    """Return one sentence for each conflicting or ineffective flag."""
    problems = _validate_data(options) + _validate_episodes(options)
    is_server = options.backend == "openai"
    unused = LOCAL_ONLY if is_server else SERVER_ONLY if options.backend == "local" else SERVER_ONLY[1:]
    for name in (*unused, *(() if options.backend == "vllm" and not options.base_url else ("engine_options",))):
        if getattr(options, name) is not None:
            problems.append(f"--{name} has no effect with --backend {options.backend}")
    problems += _validate_agreement(options)
    if options.backend == "sglang" and not options.base_url:
        problems.append("--backend sglang needs --base_url, such as http://localhost:30000")
    if is_server and options.use_cpu:
        problems.append("--use_cpu has no effect with --backend openai")
    if is_server and not options.base_url:
        problems.append("--backend openai needs --base_url, such as http://localhost:8000/v1")
    if (options.timeout is not None and options.timeout <= 0) or (options.retries is not None and options.retries < 0):
        problems.append("--timeout must be above 0 and --retries at least 0")
    return problems or _validate_task(options)


def _validate_agreement(options: argparse.Namespace) -> list[str]:
    if options.agreement is None:
        return []
    if options.backend == "local":
        return ["--agreement compares a backend with --backend local; choose another one"]
    if options.environment or options.temperature or options.num_samples > 1:
        return ["--agreement compares greedy completions: leave out --environment, --temperature and --num_samples"]
    return []


def _validate_data(options: argparse.Namespace) -> list[str]:
    if options.use_huggingface_dataset and not options.dataset_name:
        return ["--use_huggingface_dataset needs --dataset_name"]
    given = [name for name in ("data_file_paths", "dataset_name") if getattr(options, name)]
    if len(given) == 1:
        return []
    if given or not options.environment:
        return ["set either --data_file_paths or --dataset_name"]
    unused = [name for name in (*DATA_FLAGS, "group_by") if getattr(options, name) is not None]
    unused += [name for name in ("allow_outside", "allow_private_urls") if getattr(options, name)]
    unused += ["task_type"] if options.task_type != "default" else []
    return [f"--{name} has no effect without data" for name in unused]


def _validate_episodes(options: argparse.Namespace) -> list[str]:
    if options.environment and options.backend == "openai":
        return ["--environment continues exact tokens, which --backend openai cannot: use local, vllm or sglang"]
    unused = [name for name in (*ENVIRONMENT_FLAGS, *EPISODE_DEFAULTS) if getattr(options, name) is not None]
    if unused and not options.environment:
        return [f"--{name} has no effect without --environment" for name in unused]
    if options.reward_time_limit is not None and not 0 <= options.reward_time_limit < math.inf:
        return [f"--reward_time_limit must be at least 0, got {options.reward_time_limit:g}"]
    if options.tool_time_limit is not None and options.tool_time_limit <= 0:
        return [f"--tool_time_limit must be above 0, got {options.tool_time_limit:g}"]
    return []


def _validate_task(options: argparse.Namespace) -> list[str]:
    from vlm_grpo.evaluation.sampling_params import SamplingParams, check_pass_k
    from vlm_grpo.tasks import TASKS

    try:
        SamplingParams(options.temperature, options.top_p, options.num_samples, options.seed)
        metric = "success" if options.environment else TASKS[options.task_type].metric
        check_pass_k(options.pass_k, options.num_samples, metric)
    except (ValueError, KeyError) as error:
        return [str(error.args[0])]
    if options.backend == "openai" and options.answer_space is None:
        from vlm_grpo.evaluation.backends.openai import needs_space, space_of_name

        if needs_space(options.task_type) and space_of_name(options.model_name_or_path) is None:
            return [
                f"--task_type {options.task_type} scores boxes, but the name {options.model_name_or_path!r} does not "
                "tell their coordinate space: set --answer_space"
            ]
    return []


def prediction_settings(options: argparse.Namespace) -> JsonObject:
    """Return the settings that predictions depend on."""
    unused = () if options.environment else ("environment", *ENVIRONMENT_FLAGS, *EPISODE_DEFAULTS)
    settings = {name: value for name, value in vars(options).items() if name not in (*FREE, *unused)}
    if settings["dtype"] is None and options.backend != "openai":
        settings["dtype"] = "auto"
    if options.environment:
        settings |= {name: settings[name] or default for name, default in EPISODE_DEFAULTS.items()}
    return settings
