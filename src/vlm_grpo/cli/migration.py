"""Flags, keys and values of other systems and their counterparts here, one table per system.

A change with a `read` function is accepted and translated; all others raise an error that names the counterpart.
docs/migration.md is generated from these tables (docs/gen_migration.py), and tests run each line. translation.py
applies them to command lines and YAML files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Reader = Callable[[object], list[str]]  # converts a value to arguments; raises ValueError if it is not accepted
FILES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Change:
    """The counterpart of one flag or key.

    Attributes:
        new: the counterpart in this package.
        read: translates a value; None if no value is accepted.
        example: a value for the test of this entry.
        note: additional information.
    """

    new: str
    read: Reader | None = None
    example: str = ""
    note: str = ""


def yaml_text(value: object) -> str:
    """Return a YAML value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def renamed_flag(flag: str, example: str, note: str = "") -> Change:
    """Return the change of a renamed flag; a list becomes several values."""

    def read(value: object) -> list[str]:
        if isinstance(value, list | tuple):
            return [f"--{flag}", *map(yaml_text, value)]
        return [f"--{flag}={yaml_text(value)}"]

    return Change(f"--{flag}", read, example, note)


def fixed_setting(new: str, value: str, note: str = "") -> Change:
    """Return the change of a setting that is fixed in this package: any other value than `value` is an error."""

    def read(given: object) -> list[str]:
        if yaml_text(given).lower() != value:
            raise ValueError(note or new)
        return []

    return Change(new, read, value, note)


def _data(value: object) -> list[str]:
    names = [yaml_text(name).strip() for name in (value if isinstance(value, list) else str(value).split(","))]
    if all(Path(name.rpartition("@")[0] or name).suffix in FILES for name in names):
        return [f"--data_file_paths={':'.join(names)}"]
    if len(names) > 1:
        raise ValueError("several data sets: use one --dataset_name, or jsonl files a.jsonl:b.jsonl")
    return [f"--dataset_name={names[0]}"]


def _policy_loss(value: object) -> list[str]:
    return [] if yaml_text(value) in ("ppo", "vanilla", "default") else [f"--algorithm={value}"]


def _reward_type(value: object) -> list[str]:
    if yaml_text(value) not in ("sequential", "batch", "function"):
        raise ValueError("the rewards of an environment are enabled by --environment")
    return []


def _loggers(value: object) -> list[str]:
    names = value if isinstance(value, list) else str(value).strip("[]").replace("'", "").replace('"', "").split(",")
    known = [name for name in (yaml_text(name).strip() for name in names) if name not in ("console", "file", "")]
    return ["--report_to", *known] if known else []


def _adamw(value: object) -> list[str]:
    if yaml_text(value) != "adamw":
        raise ValueError("--optim NAME, with an optimizer name of transformers")
    return []


BATCH = "--per_device_train_batch_size, --gradient_accumulation_steps"
PROMPTS = "completions per step = per_device_train_batch_size x gradient_accumulation_steps x processes"
SHARDED = "configs/accelerate/fsdp2.yaml with `accelerate launch --config_file`"
LAUNCHED = "`accelerate launch --num_processes N --num_machines M`, or torchrun"
VLLM = "--use_vllm true --vllm_mode colocate"
CHORD = """--algorithm chord --algorithm_options '{"mu_peak": 0.5, "mu_warmup": 200}'"""

RLLAVA: Mapping[str, Change] = {
    "config": renamed_flag("config", "config.yaml", "nested YAML is translated with this table"),
    "data.train_files": Change(
        "--data_file_paths for jsonl, json and csv files, else --dataset_name", _data, "org/data@train"
    ),
    "data.val_files": Change("--val_split_ratio, or `vlm-grpo evaluate` on another file"),
    "data.prompt_key": renamed_flag("prompt_key", "problem"),
    "data.answer_key": renamed_flag("answer_key", "answer"),
    "data.image_key": renamed_flag("image_key", "images"),
    "data.video_key": renamed_flag("video_key", "videos"),
    "data.image_dir": renamed_flag("image_folders", "."),
    "data.video_fps": Change('"video": {"video": path, "fps": 2} in the data'),
    "data.format_prompt": renamed_flag("format_prompt", "task.jinja", "`content` is the question, as in RLLaVA"),
    "data.override_chat_template": Change("--chat_template_path FILE.jinja"),
    "data.max_prompt_length": renamed_flag("max_prompt_length", "2048", "longer rows are dropped"),
    "data.filter_overlong_prompts": fixed_setting(
        "--max_prompt_length", "true", "--max_prompt_length always drops longer rows; omit it to keep them"
    ),
    "data.max_response_length": renamed_flag("max_completion_length", "512"),
    "data.min_pixels": renamed_flag("min_pixels", "262144"),
    "data.max_pixels": renamed_flag("max_pixels", "4194304"),
    "data.shuffle": renamed_flag("shuffle_dataset", "true"),
    "data.seed": renamed_flag("data_seed", "1"),
    "data.train_batch_size": Change(BATCH, note=f"RLLaVA counts prompts; here {PROMPTS}"),
    "data.rollout_batch_size": Change(BATCH, note=f"RLLaVA counts prompts; here {PROMPTS}"),
    "data.val_batch_size": Change("--per_device_eval_batch_size"),
    "actor.model.model_path": renamed_flag("model_name_or_path", "m"),
    "actor.model.enable_gradient_checkpointing": renamed_flag("gradient_checkpointing", "false"),
    "actor.model.trust_remote_code": renamed_flag("trust_remote_code", "false"),
    "actor.model.freeze_vision_tower": renamed_flag("freeze_vision_modules", "false"),
    "actor.optim.lr": renamed_flag("learning_rate", "1e-06"),
    "actor.optim.weight_decay": renamed_flag("weight_decay", "0.01"),
    "actor.optim.lr_warmup_ratio": renamed_flag("warmup_steps", "0.1", "values below 1 are a fraction of all steps"),
    "actor.optim.strategy": Change("--optim", _adamw, "adamw"),
    "actor.max_grad_norm": renamed_flag("max_grad_norm", "1.0"),
    "actor.clip_ratio": renamed_flag("epsilon", "0.2"),
    "actor.clip_ratio_low": renamed_flag("epsilon", "0.2"),
    "actor.clip_ratio_high": renamed_flag("epsilon_high", "0.28"),
    "actor.ppo_epochs": renamed_flag("num_iterations", "1"),
    "actor.policy_loss_fn": Change("--algorithm", _policy_loss, "gspo"),
    "actor.global_batch_size": Change(BATCH, note=PROMPTS),
    "actor.ppo_mini_batch_size": Change(BATCH, note=PROMPTS),
    "actor.ppo_micro_batch_size": Change("--per_device_train_batch_size"),
    "actor.log_prob_micro_batch_size": Change("--max_tokens_per_forward"),
    "actor.ulysses_size": Change("no counterpart: there is no sequence parallelism"),
    "actor.fsdp": Change(SHARDED),
    "actor.offload": Change("configs/deepspeed/zero3_offload.json with --deepspeed"),
    "ref": Change("the reference model is enabled by --beta and sharded like the policy"),
    "critic": Change("--algorithm ppo, with --value_learning_rate", note="`critic: null` is ignored"),
    "rollout.n": renamed_flag("num_generations", "8"),
    "rollout.temperature": renamed_flag("temperature", "1.0"),
    "rollout.top_p": renamed_flag("top_p", "1.0"),
    "rollout.top_k": Change("--top_k", note="all tokens are 0 here and -1 in RLLaVA"),
    "rollout.name": Change(VLLM),
    "rollout.limit_images": Change("no counterpart: all images of a row are used"),
    "rollout.disable_tqdm": renamed_flag("disable_tqdm", "false"),
    "rollout.tensor_parallel_size": Change(f"{VLLM} --vllm_tensor_parallel_size"),
    "rollout.vllm.gpu_memory_utilization": Change(f"{VLLM} --vllm_gpu_memory_utilization"),
    "rollout.vllm": Change(VLLM, note="set other vLLM options on a server, --vllm_mode server"),
    "rollout.val_override_config": Change(
        "no counterpart: evaluation during training is greedy; `vlm-grpo evaluate` can sample"
    ),
    "algorithm.adv_estimator": renamed_flag("algorithm", "grpo", "`gae` is `ppo`"),
    "algorithm.policy_loss_fn": Change("--algorithm", _policy_loss, "dapo", "overrides adv_estimator"),
    "algorithm.clip_range": renamed_flag("epsilon", "0.2"),
    "algorithm.kl_coef": Change("--beta (KL in the loss) or --kl_reward_coef"),
    "algorithm.use_kl_loss": Change("--beta above 0 (KL in the loss) or --kl_reward_coef"),
    "algorithm.disable_kl": Change("--beta 0"),
    "algorithm.strategy": Change(CHORD),
    "algorithm.expert_data_ratio": Change("--algorithm_options '{\"expert_batch\": 8}', demonstrations per step"),
    "algorithm.mu_warmup_steps": Change(CHORD),
    "algorithm.mu_decay_steps": Change("""--algorithm_options '{"mu_decay": 400}'"""),
    "algorithm.mu_peak": Change(CHORD),
    "algorithm.mu_valley": Change("""--algorithm_options '{"mu_valley": 0.02}'"""),
    "algorithm.enable_phi_function": Change("""--algorithm_options '{"phi": true}'"""),
    "mix_sampler": Change("--algorithm chord --expert_data_file_paths FILE.jsonl"),
    "reward.reward_function": renamed_flag("reward_funcs", "mine.py:compute_score"),
    "reward.reward_type": Change("nothing: a reward is recognized by its parameters", _reward_type, "batch"),
    "reward.reward_function_kwargs": Change("default values of the function's parameters"),
    "trainer.outputs_dir": renamed_flag("output_dir", "out"),
    "trainer.save_checkpoint_path": renamed_flag("output_dir", "out"),
    "trainer.val_freq": renamed_flag("val_freq", "-1"),
    "trainer.val_before_train": renamed_flag("val_before_train", "false"),
    "trainer.total_epochs": renamed_flag("num_train_epochs", "3"),
    "trainer.max_steps": renamed_flag("max_steps", "10"),
    "trainer.save_freq": Change("--save_steps N, in optimizer steps, or --save_strategy epoch"),
    "trainer.save_limit": renamed_flag("save_total_limit", "3"),
    "trainer.save_model_only": renamed_flag("save_only_model", "false"),
    "trainer.load_checkpoint_path": renamed_flag("resume_from_checkpoint", "out/checkpoint-10"),
    "trainer.find_last_checkpoint": renamed_flag("resume_from_checkpoint", "true"),
    "trainer.logger": Change("--report_to", _loggers, "tensorboard", "metrics are always printed to the console"),
    "trainer.experiment_name": renamed_flag("run_name", "mine"),
    "trainer.project_name": Change("the environment variable WANDB_PROJECT, with --report_to wandb"),
    "trainer.nnodes": Change(LAUNCHED),
    "trainer.n_gpus_per_node": Change(LAUNCHED),
    "trainer.max_try_make_batch": Change("--dynamic_sampling ROUNDS"),
}
VLM_R1: Mapping[str, Change] = {
    "is_reward_customized_from_vlm_module": fixed_setting(
        "nothing: the task determines `accuracy`", "true", "`--reward_method auto` uses the type of the answer instead"
    ),
    "image_root": renamed_flag("image_folders", "."),
    "warmup_ratio": renamed_flag("warmup_steps", "0.03", "values below 1 are a fraction of all steps"),
    "arrow_cache_dir": Change("the environment variable HF_DATASETS_CACHE"),
    "max_anyres_num": Change("--max_image_tokens N"),
    "val_iter": Change("--val_freq EPOCHS, or --eval_strategy steps --eval_steps N"),
}
VQA: Mapping[str, Change] = {
    "target_modules": renamed_flag("lora_target_modules", "q_proj"),
    "logging_dir": Change(
        "the environment variable TENSORBOARD_LOGGING_DIR",
        lambda value: [],
        "logs",
        "set automatically for the run, with --report_to tensorboard",
    ),
    "use_llm_grader": Change("--reward_method judge, with --judge_model and --judge_base_url"),
    "max_new_tokens": Change("--max_completion_length"),
}
FLEET: Mapping[str, Change] = {
    "model_id": renamed_flag("model_name_or_path", "m"),
    "train_steps": renamed_flag("max_steps", "200"),
    "num_rollouts": renamed_flag("num_generations", "4"),
    "per_device_batch_size": renamed_flag("per_device_train_batch_size", "4"),
    "use_lora": renamed_flag("use_peft", "false"),
}
# Old names of flags of this package.
RENAMED: Mapping[str, Change] = {
    "tool_protocol": renamed_flag("tool_format", "native"),
    "kl_in_reward": renamed_flag("kl_reward_coef", "0.1"),
}
# Values of other systems for flags of this package: (flag, value) to (system, value here); None drops the flag.
VALUES: Mapping[tuple[str, str], tuple[str, str | None]] = {
    ("dataset_name", "this_is_not_used"): ("VLM-R1", None),
    ("dataset_name", "not_used"): ("VLM-R1", None),
    ("task_type", "gui_defect"): ("VLM-R1", "gui"),
}
FLAGS: Mapping[str, Mapping[str, Change]] = {"VLM-R1": VLM_R1, "the VQA guide": VQA, "Fleet": FLEET}
SECTIONS = ("data", "actor", "rollout", "critic", "ref", "reward", "algorithm", "trainer", "worker", "mix_sampler")


def change_of_key(key: str) -> Change | None:
    """Return the change of a dotted key, or else that of the section it belongs to."""
    key = key.removeprefix("worker.")
    while key and key not in RLLAVA:
        key = key.rpartition(".")[0]
    return RLLAVA.get(key)


def change_of_flag(name: str) -> tuple[str, Change] | None:
    """Return the system that a flag comes from, and its change; None for an unknown flag."""
    tables = {**FLAGS, "renamed in this package": RENAMED}
    return next(((system, table[name]) for system, table in tables.items() if name in table), None)


def hint(name: str) -> str | None:
    """Return the counterpart of an unknown flag if it is the last part of one of RLLaVA's keys."""
    keys = [key for key in RLLAVA if key.rpartition(".")[2] == name]
    return f"RLLaVA's {keys[0]} is {RLLAVA[keys[0]].new} here" if keys else None
