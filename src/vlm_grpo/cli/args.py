"""The training flags of this package, and checks of a command line that do not need torch.

Only the names of TRL's flags are known here (trl_flags.json, written by `python docs/gen_trl_flags.py`), so that
`--help` and errors about misspelled flags are instant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

from vlm_grpo.cli.migration import hint as hint_of
from vlm_grpo.registry import nearest


def _flag(help_text: str, default: object = None) -> Any:
    return field(default=default, metadata={"help": help_text})


FlagValues = dict[str, Any]  # values of flags by name, as a configuration file or the command line sets them


@dataclass
class ScriptArguments:
    """Data, task and rewards of a run; TRL's configuration holds the training settings."""

    trainer: str = field(default="grpo", metadata={"help": "Trainer: grpo or rloo.", "choices": ["grpo", "rloo"]})
    data_file_paths: str | None = _flag("jsonl files, separated by ':' (a.jsonl:b.jsonl).")
    image_folders: str | None = _flag("Image folder of each data file, separated by ':', or one folder for all.")
    reward_method: str | None = _flag(
        "Accuracy method of each data file, separated by ':'; overridden by a record's own."
    )
    expert_data_file_paths: str | None = _flag("jsonl files with expert answers (id, expert), separated by ':'.")
    expert_key: str | None = _flag("Column with expert answers, or thinking+solution (default: expert).")
    mixture: str | None = _flag("Fraction of each data file, separated by ':' (0.7:0.3); no row is repeated.")
    streaming: bool = _flag("Stream the data instead of loading it first; needs --max_steps.", False)
    dataset_name: str | None = _flag("Hugging Face data: org/name@split, a save_to_disk folder, or a file.")
    use_huggingface_dataset: bool = _flag("Read --dataset_name (implied by it; kept for old scripts).", False)
    task_type: str = _flag("Task: its prompt, default rewards and metric (`vlm-grpo tasks`).", "default")
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Rewards as NAME[:WEIGHT] or path/to/file.py:function[:WEIGHT]; default: the task's."},
    )
    environment: list[str] | None = field(
        default=None,
        metadata={
            "help": "Environments with tools, by name (`vlm-grpo environments`) or file.py:Class; if several, the "
            "column 'environment' selects one per row."
        },
    )
    environment_options: str | None = _flag(
        "Environment options as a JSON object; with several environments, keyed by name."
    )
    data_root: str | None = _flag("--environment pick_image: folder with the candidate images.")
    candidates_per_episode: int | None = _flag("--environment pick_image: number of candidate images (default: 4).")
    fixed_correct_index: int | None = _flag(
        "--environment pick_image: index of the correct image (default: 0); -1 is random."
    )
    format_prompt: str | None = _flag("User-defined prompt template, a jinja file.")
    chat_template_path: str | None = _flag("Chat template that replaces the processor's, a jinja file.")
    prompt_key: str | None = _flag("Column with the question.")
    answer_key: str | None = _flag("Column with the answer.")
    image_key: str | None = _flag("Column with the image or images.")
    video_key: str | None = _flag("Column with the video or videos: paths, or lists of frames.")
    ignore_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the data to ignore, such as a `task` with other values."}
    )
    allow_outside: bool = _flag("Allow image paths that leave their image folder through '..'.", False)
    allow_private_urls: bool = _flag("Allow image URLs of this machine and of private networks.", False)
    val_split_ratio: float = _flag("Fraction of the data that is held out for evaluation.", 0.0)
    val_before_train: bool = _flag("Evaluate greedily before the first step.", False)
    val_freq: float = _flag("Evaluate greedily every N epochs; 0 or -1 means never.", 0.0)
    live_report: bool = _flag("Continuously update output_dir/report/index.html with curves and completions.", True)
    dry_run: bool = _flag("Show two prompts and the resolved configuration, then exit.", False)


# Flags that require another: (flags or prefixes, the requirement as text, what satisfies it). Any of the flags between
# bars must be set, or have one of the values between bars.
NEEDS: list[tuple[tuple[str, ...], str, tuple[str, str]]] = [
    (("lora_", "use_rslora", "use_dora"), "--use_peft", ("use_peft", "")),
    (("bnb_4bit_", "use_bnb_nested_quant"), "--load_in_4bit", ("load_in_4bit", "")),
    (("vllm_importance_",), "--rollout_engine vllm or sglang", ("use_vllm|rollout_engine", "True|vllm|sglang")),
    (("vllm_mode", "vllm_server_"), "--use_vllm", ("use_vllm", "")),
    (
        ("vllm_gpu_", "vllm_tensor_", "vllm_enable_", "vllm_max_", "vllm_model_", "vllm_structured_", "vllm_group_"),
        "--rollout_engine vllm",
        ("use_vllm|rollout_engine", "True|vllm"),
    ),
    (("vllm_server_",), "--vllm_mode server", ("vllm_mode", "server")),
    (("vllm_group_port",), "--rollout_transfer nccl", ("rollout_transfer", "nccl")),
    (
        ("rollout_url", "rollout_options", "rollout_transfer", "rollout_folder", "rollout_wait"),
        "--rollout_engine",
        ("use_vllm|rollout_engine", ""),
    ),
    (("rollout_transfer", "rollout_wait"), "--rollout_url or --vllm_mode server", ("rollout_url|vllm_mode", "")),
    (
        ("log_completions_hub_repo", "num_completions_to_print", "log_unique_prompts", "log_multimodal"),
        "--log_completions",
        ("log_completions", ""),
    ),
    (("entropy_coef_", "entropy_target"), "--use_adaptive_entropy", ("use_adaptive_entropy", "")),
    (("gradient_checkpointing_kwargs",), "--gradient_checkpointing", ("gradient_checkpointing", "")),
    (("activation_checkpointing_kwargs",), "--activation_checkpointing", ("activation_checkpointing", "")),
    (("hub_",), "--push_to_hub", ("push_to_hub", "")),
    (("torch_compile_",), "--torch_compile", ("torch_compile", "")),
    (("fsdp_config",), "--fsdp", ("fsdp", "")),
    (("liger_kernel_config",), "--use_liger_kernel", ("use_liger_kernel", "")),
    (("save_steps",), "--save_strategy steps", ("save_strategy", "steps")),
    (("logging_steps",), "--logging_strategy steps", ("logging_strategy", "steps")),
    (
        ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        "--dataloader_num_workers",
        ("dataloader_num_workers", ""),
    ),
    (("sapo_",), "--loss_type sapo", ("loss_type", "sapo")),
    (("vespo_",), "--loss_type vespo", ("loss_type", "vespo")),
    (("ref_model_",), "--sync_ref_model", ("sync_ref_model", "")),
    (("use_bias_correction_kl",), "--beta above 0", ("beta", "")),
    (("sync_ref_model",), "--beta above 0 or --kl_reward_coef", ("beta|kl_reward_coef", "")),
    (
        (
            *("val_before_train", "val_freq", "per_device_eval_batch_size", "eval_strategy", "eval_on_start"),
            *("load_best_model_at_end", "metric_for_best_model"),
        ),
        "--val_split_ratio",
        ("val_split_ratio", ""),
    ),
    (("eval_steps",), "--eval_strategy steps", ("eval_strategy", "steps")),
    (("eval_delay",), "--eval_strategy steps or epoch", ("eval_strategy", "steps|epoch")),
    (
        (
            *("environment_options", "data_root", "candidates_per_episode", "fixed_correct_index"),
            *("max_turns", "tool_time_limit", "tool_format"),
        ),
        "--environment",
        ("environment", ""),
    ),
    (("dynamic_sampling_reward",), "--dynamic_sampling", ("dynamic_sampling", "")),
    (("algorithm_options",), "--algorithm", ("algorithm", "")),
    (("max_tokens_per_forward",), "--shared_prefix auto or on", ("shared_prefix", "auto|on")),
    (("greater_is_better",), "--metric_for_best_model", ("metric_for_best_model", "")),
]

# Flags of transformers' trainer without effect here, and what to use instead.
GREEDY = "--val_split_ratio with --val_freq, --eval_strategy or --val_before_train evaluates greedily"
UNREAD = {
    "num_generations_eval": GREEDY,
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "this command always trains"),
    **dict.fromkeys(
        ("label_smoothing_factor", "label_names", "prediction_loss_only"), "the loss is set by --loss_type"
    ),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches"), GREEDY),
    **dict.fromkeys(
        ("train_sampling_strategy", "length_column_name"), "prompts are sampled in groups; see --shuffle_dataset"
    ),
    "max_tool_calling_iterations": "--max_turns limits the turns of an episode",
}


@cache
def trl_flags() -> dict[str, dict[str, str]]:
    """Return TRL's flags with one line of help each, under the keys grpo, rloo and model."""
    return json.loads(files("vlm_grpo.cli").joinpath("trl_flags.json").read_text(encoding="utf-8"))


def known_flags(trainer: str) -> set[str]:
    """Return all flag names (without dashes) that a run with this trainer accepts."""
    script_flags = {entry.name for entry in fields(ScriptArguments)}
    return script_flags | set(trl_flags()[trainer]) | set(trl_flags()["model"]) | {"config", "help"}


def flag_names(argv: list[str]) -> list[str]:
    """Return the flags on a command line, in order, without dashes and values."""
    return [word[2:].split("=", 1)[0].replace("-", "_") for word in argv if word.startswith("--") and len(word) > 2]


def argv_value(argv: list[str], name: str) -> str | None:
    """Return the last value of a flag, like argparse; "" if none follows, None without the flag."""
    result = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            result = value if equals else following
    return result


def without_flag(argv: list[str], name: str, at_most: int = 10**6) -> list[str]:
    """Return the command line without all occurrences of a flag, each with up to `at_most` values."""
    words, values_left = [], 0
    for word in argv:
        if word.startswith("--"):
            is_flag = flag_names([word]) == [name]
            values_left = at_most - ("=" in word) if is_flag else 0
            if is_flag:
                continue
        if values_left > 0:
            values_left -= 1
        else:
            words.append(word)
    return words


def unknown_flags(argv: list[str], trainer: str) -> list[str]:
    """Return one sentence for each flag that is unknown to this trainer, with similar names."""
    known = known_flags(trainer)
    other = "rloo" if trainer == "grpo" else "grpo"
    problems = []
    for name in flag_names(argv):
        if name in known or (name.startswith("no_") and name[3:] in known) or name == "local_rank":
            continue
        if name in known_flags(other):
            problems.append(f"--{name} is a flag of --trainer {other}, but this run uses --trainer {trainer}")
            continue
        if advice := hint_of(name):
            problems.append(f"unknown flag --{name}; {advice}")
            continue
        suggestions = nearest(name, sorted(known))
        hint = (
            f"; did you mean {' or '.join('--' + option for option in suggestions)}?" if suggestions else "; see --help"
        )
        problems.append(f"unknown flag --{name}{hint}")
    return problems


def ineffective_flags(given: list[str], values: FlagValues) -> list[str]:
    """Return one sentence for each flag that is set but has no effect in this run."""
    problems = []
    for prefixes, needed, (name, required) in NEEDS:
        current = [values.get(each) for each in name.split("|")]
        wanted = required.split("|")
        satisfied = any(value in wanted or str(value) in wanted if required else bool(value) for value in current)
        if satisfied:
            continue
        affected = [
            flag for flag in given if flag.startswith(prefixes) and flag in values and not _is_off(flag, values[flag])
        ]
        problems += [f"--{flag} has no effect without {needed}" for flag in affected]
    problems += [f"--{flag} has no effect here: {UNREAD[flag]}" for flag in given if flag in UNREAD and flag in values]
    has_own = values.get("environment") or ".py:" in " ".join(map(str, values.get("reward_funcs") or []))
    if "reward_time_limit" in given and not has_own:
        problems.append(
            "--reward_time_limit has no effect without a user-defined reward (file.py:name) or --environment"
        )
    if {"max_steps", "num_train_epochs"} <= set(given) and (values.get("max_steps") or 0) > 0:
        problems.append("--num_train_epochs has no effect with --max_steps; set only one of them")
    if values.get("dataset_name") and values.get("data_file_paths"):
        problems.append("--dataset_name and --data_file_paths are mutually exclusive; set only one of them")
    has_data = bool(values.get("dataset_name") or values.get("data_file_paths"))
    if not has_data and not values.get("environment"):
        problems.append("no data: set --data_file_paths file.jsonl, or --dataset_name")
    if values.get("environment"):
        problems += validate_environment_flags(values, has_data)
    if values.get("use_huggingface_dataset") and not values.get("dataset_name"):
        problems.append("--use_huggingface_dataset needs --dataset_name")
    return problems + (validate_streaming_flags(values) if values.get("streaming") else [])


def _is_off(flag: str, value: object) -> bool:
    """Return whether a flag is off, and thus needs no other flag: false, or --val_freq 0 or -1 (never)."""
    return value is False or (flag == "val_freq" and value in (0, -1))


def validate_environment_flags(values: FlagValues, has_data: bool) -> list[str]:
    """Return one sentence for each flag that is incompatible with --environment."""
    problems = []
    if not has_data and (values.get("max_steps") or 0) <= 0:
        problems.append("--environment without data needs --max_steps: the number of episodes is unlimited")
    if not has_data and values.get("dynamic_sampling"):
        problems.append("--dynamic_sampling needs rows, which --environment without data does not have")
    if values.get("val_split_ratio"):
        problems.append("--val_split_ratio would evaluate without tools; use `vlm-grpo evaluate --environment` instead")
    if values.get("max_prompt_length"):
        problems.append("--max_prompt_length cannot measure prompts of --environment; remove it")
    return problems


def validate_streaming_flags(values: FlagValues) -> list[str]:
    """Return one sentence for each flag that is incompatible with --streaming."""
    problems = []
    if (values.get("max_steps") or 0) <= 0:
        problems.append("--streaming needs --max_steps: the length of a stream is unknown")
    if values.get("val_split_ratio"):
        problems.append("--val_split_ratio cannot split a stream; remove it or --streaming")
    if values.get("mixture"):
        problems.append("--mixture needs the number of rows of each file, which is unknown with --streaming")
    if values.get("dynamic_sampling"):
        problems.append("--dynamic_sampling needs random access to rows; remove it or --streaming")
    if values.get("dataloader_num_workers"):
        problems.append(
            "--dataloader_num_workers has no effect with --streaming: a single process keeps groups together"
        )
    return problems


def help_text() -> str:
    """Return the text of `--help`: this package's flags, and one line for each of TRL's."""
    lines = ["usage: vlm-grpo train [--config file.yaml] --model_name_or_path MODEL --data_file_paths FILE ...", ""]
    lines += ["Data, task and rewards:"]
    lines += [
        _line(entry.name, f"{entry.metadata['help']}{_default(entry.default)}") for entry in fields(ScriptArguments)
    ]
    lines += ["", "Model and adapters:"]
    lines += [_line(name, text) for name, text in sorted(trl_flags()["model"].items())]
    both = {name: text for name, text in trl_flags()["grpo"].items() if name in trl_flags()["rloo"]}
    lines += ["", "Training, generation and logging (both trainers):"]
    lines += [_line(name, text) for name, text in sorted(both.items())]
    for trainer in ("grpo", "rloo"):
        only = {name: text for name, text in trl_flags()[trainer].items() if name not in both}
        lines += ["", f"Only with --trainer {trainer}:", *(_line(name, text) for name, text in sorted(only.items()))]
    return "\n".join(lines)


def _default(value: object) -> str:
    return "" if value in (None, False, "") else f" (default: {value})"


def _line(name: str, text: str) -> str:
    return f"  --{name:<34} {text}"[:160]
