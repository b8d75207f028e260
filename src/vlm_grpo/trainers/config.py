"""TRL's configurations plus the few fields that image training needs. The fields are the same for both trainers."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig, RLOOConfig

from vlm_grpo.algorithms import AlgorithmConfig, algorithm_settings, configured_algorithm
from vlm_grpo.algorithms.kl_controller import validate_kl_reward
from vlm_grpo.answer_space import ANSWER_SPACES
from vlm_grpo.redact import redact
from vlm_grpo.rewards import JudgeSettings
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT
from vlm_grpo.trainers.preemption import check_preemption
from vlm_grpo.trainers.ranges import range_problems
from vlm_grpo.trainers.rollout_flags import resolve_engine

logger = logging.getLogger(__name__)

JUDGE_NUMBERS = ("timeout", "retries", "concurrency")
RENAMED_OPTIONS = {"rescue_at": "hpt_threshold"}  # of --algorithm_options


if TYPE_CHECKING:  # its fields come after these, in classes that inherit from both
    _TRLConfig = GRPOConfig
else:
    _TRLConfig = object


@dataclass
class VisionFields(_TRLConfig):
    """Fields that both configurations share. Pixels are counted after the family's own rounding to whole patches."""

    algorithm: str | None = field(
        default=None,
        metadata={"help": "A published algorithm by name (`vlm-grpo algorithms`); other flags override it."},
    )
    algorithm_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Hyperparameters of the algorithm, a JSON object; `vlm-grpo algorithms` lists them."},
    )
    kl_reward_coef: float = field(
        default=0.0,
        metadata={"help": "Coefficient of the KL from the reference model as a penalty in the reward (default 0)."},
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Estimator of the KL in the reward: k1, k2 or k3 (default k1).",
            "choices": ["k1", "k2", "k3"],
        },
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "KL per token, in nats, that --kl_reward_coef is adapted to (default: it is fixed)."},
    )
    value_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of PPO's value model (default 1e-4, or 1e-5 for a model of its own)."},
    )
    value_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps in the beginning that train PPO's value model alone (default 0)."}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Images with more pixels are shrunk to at most this many."}
    )
    min_pixels: int | None = field(
        default=None, metadata={"help": "Images with fewer pixels are enlarged to at least this many."}
    )
    max_image_tokens: int | None = field(
        default=None, metadata={"help": "No image becomes more tokens than this, in any model family."}
    )
    answer_space: str | None = field(
        default=None,
        metadata={
            "help": "Coordinates of the model's boxes (default: its family's): thousand, resized, original, unit.",
            "choices": list(ANSWER_SPACES),
        },
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Rows with longer prompts, counted with their images' tokens, are dropped."}
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "Pass each prompt through the model once for all of its completions: auto, on or off.",
            "choices": ["auto", "on", "off"],
        },
    )
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={"help": "About how many tokens of shared prompts go into one forward (default: the batch size's)."},
    )
    rollout_engine: str | None = field(
        default=None,
        metadata={
            "help": "What samples the completions: transformers (default), vllm, sglang (`vlm-grpo engines`), or "
            "file.py:Class."
        },
    )
    rollout_url: list[str] | None = field(
        default=None,
        metadata={"help": "Servers of the rollout engine, such as http://host:8000; without, it runs in this process."},
    )
    rollout_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of an engine in this process, a JSON object."}
    )
    rollout_transfer: str = field(
        default="folder",
        metadata={
            "help": "How servers get the weights: folder (files that both see), adapter (the same, with the adapter "
            "alone) or nccl (vLLM, on GPUs).",
            "choices": ["folder", "adapter", "nccl"],
        },
    )
    rollout_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that trainer and servers see, for weights (default: output_dir/rollout_engine)."},
    )
    rollout_wait: float = field(
        default=600.0, metadata={"help": "Seconds that a rollout server which does not answer is waited for."}
    )
    max_turns: int = field(
        default=8, metadata={"help": "Turns of the model in an episode, where it has tools (default 8)."}
    )
    reward_time_limit: float = field(
        default=DEFAULT_TIME_LIMIT,
        metadata={
            "help": "Seconds that a call of your own reward, or of an environment's methods, may take; 0 is no limit."
        },
    )
    tool_time_limit: float = field(default=60.0, metadata={"help": "Seconds that one call of a tool may take."})
    tool_format: str = field(
        default="auto",
        metadata={
            "help": "How the prompt describes tools and calls are parsed: auto (as the chat template, else hermes), "
            "native, hermes, tags.",
            "choices": ["auto", "native", "hermes", "tags"],
        },
    )
    freeze_vision_modules: bool = field(
        default=False, metadata={"help": "Keep the vision tower's weights as they are."}
    )
    freeze_projector: bool = field(
        default=False, metadata={"help": "Keep the projector between vision tower and language model as it is."}
    )
    freeze_language_model: bool = field(
        default=False, metadata={"help": "Keep the language model's weights (without its head) as they are."}
    )
    reasoning_encoder: str | None = field(
        default=None,
        metadata={"help": "Sentence encoder of the reasoning reward, name or folder (default all-MiniLM-L6-v2)."},
    )
    reasoning_device: str | None = field(
        default=None, metadata={"help": "Where the sentence encoder runs, such as cuda (default cpu)."}
    )
    reasoning_threshold: float | None = field(
        default=None, metadata={"help": "Cosine above which two reasoning steps match (default: the encoder's own)."}
    )

    judge_model: str | None = field(
        default=None, metadata={"help": "Language model that judges answers (default: JUDGE_MODEL in the environment)."}
    )
    judge_base_url: str | None = field(
        default=None,
        metadata={"help": "Its OpenAI-compatible server, such as http://localhost:11434/v1 (default: JUDGE_BASE_URL)."},
    )
    judge_api_key_variable: str | None = field(
        default=None, metadata={"help": "Variable of the environment that holds its key (default: JUDGE_API_KEY)."}
    )
    judge_timeout: float | None = field(
        default=None, metadata={"help": "Seconds that the judge has for one answer, each try (default: 30)."}
    )
    judge_retries: int | None = field(
        default=None, metadata={"help": "How often a request to the judge that failed is repeated (default: 2)."}
    )
    judge_concurrency: int | None = field(
        default=None, metadata={"help": "Requests to the judge at a time, of each process (default: 16)."}
    )

    def judge_settings(self) -> JudgeSettings | None:
        """Return the judge settings of the flags; None where no flag was given, so that the environment decides.

        Raises:
            ValueError: the variable of the key is not set.
        """
        values = {name: getattr(self, f"judge_{name}") for name in ("model", "base_url", *JUDGE_NUMBERS)}
        values = {name: value for name, value in values.items() if value is not None}
        if self.judge_api_key_variable is not None:
            values["api_key"] = os.environ.get(self.judge_api_key_variable)
            if not values["api_key"]:
                raise ValueError(f"--judge_api_key_variable {self.judge_api_key_variable}: no such variable is set")
        return JudgeSettings(**values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON and loggers take them, without passwords and keys."""
        return redact(super().to_dict())

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields as a pickle holds them, without passwords and keys.

        The Trainer pickles its arguments into every checkpoint, and pushes them to the Hub.
        """
        plain = (str, dict, list, tuple)  # not the enumerations, which are texts too
        fields = vars(self).items()
        return {name: redact({name: value})[name] if type(value) in plain else value for name, value in fields}

    def __post_init__(self) -> None:
        config = configured_algorithm(self)[1]
        if problems := range_problems(vars(self), config.min_generations):
            raise ValueError("\n  ".join(problems))
        try:
            super().__post_init__()
        except ValueError as error:  # one of TRL's last checks; those after it are of vLLM's importance ratios
            is_single = self.num_generations == 1 and "at least 2 generations" in str(error)
            if not (is_single and config.min_generations == 1):
                raise
        resolve_engine(self)
        if self.algorithm_options is not None:
            self.algorithm_options = read_options(self.algorithm_options, self.algorithm, config)
        if self.algorithm:
            validate_algorithm(self.algorithm, config, self)
        check_preemption(self)
        validate_kl_reward(self, is_rloo=not isinstance(self, GRPOConfig))
        values = {"value_learning_rate": self.value_learning_rate, "value_warmup_steps": self.value_warmup_steps}
        for name in [name for name, value in values.items() if value and not config.family.needs_values]:
            raise ValueError(f"--{name} has no effect without a value model; --algorithm ppo has one")

    @classmethod
    def of(cls, algorithm: str, output_dir: str | None = None, **options: Any) -> VisionFields:
        """Return a configuration with the settings of an algorithm, as `--algorithm` sets them; `options` win.

        Raises:
            KeyError: an unknown algorithm.
            ValueError: options that are incompatible with it.
        """
        settings = algorithm_settings(algorithm, options.get("gradient_accumulation_steps", 1))
        if "generation_batch_size" in options:
            settings.pop("steps_per_generation", None)
        return cls(**{"output_dir": output_dir, "algorithm": algorithm, **settings, **options})

    def frozen_parts(self) -> list[str]:
        """Return the parts of the model, besides the vision tower, that are not trained."""
        parts = {"projector": self.freeze_projector, "language model": self.freeze_language_model}
        return [part for part, is_frozen in parts.items() if is_frozen]

    def reward_options(self) -> dict[str, Any]:
        """Return the options that the built-in rewards take from this configuration."""
        return {
            "max_length": self.max_completion_length,
            "encoder": self.reasoning_encoder,
            "device": self.reasoning_device,
            "threshold": self.reasoning_threshold,
            "judge": self.judge_settings(),
            "time_limit": self.reward_time_limit,
        }


@dataclass
class VLMGRPOConfig(VisionFields, GRPOConfig):
    """`trl.GRPOConfig` with algorithms, pixel limits, vision freezing, dynamic sampling and the reasoning encoder."""

    dynamic_sampling: int = field(
        default=0,
        metadata={"help": "Rounds of further prompts, at most, in place of groups with equal rewards (default 0)."},
    )
    dynamic_sampling_reward: str | None = field(
        default=None,
        metadata={"help": "The reward that has to vary for --dynamic_sampling (default: the weighted sum of all)."},
    )


@dataclass
class VLMRLOOConfig(VisionFields, RLOOConfig):
    """`trl.RLOOConfig` with pixel limits, vision freezing and the reasoning encoder."""


def validate_algorithm(name: str, config: AlgorithmConfig, args: Any) -> None:
    """Check that an algorithm can run with these arguments.

    Raises:
        ValueError: names the conflict and what to do.
    """
    trainer = "grpo" if isinstance(args, GRPOConfig) else "rloo"
    if trainer != config.trainer:
        raise ValueError(f"--algorithm {name} runs with --trainer {config.trainer}, not with --trainer {trainer}")
    updates = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    if config.is_on_policy and updates > 1:
        raise ValueError(
            f"--algorithm {name} is exactly on-policy: one update for each rollout, got {updates:g}; leave out "
            "--num_iterations, --steps_per_generation and --generation_batch_size"
        )
    if updates < config.min_updates:
        raise ValueError(
            f"--algorithm {name} needs at least {config.min_updates} updates for each rollout, got {updates:g}: in the "
            "first one the policy equals the old policy; set --steps_per_generation or --num_iterations"
        )
    config.family.validate(name, config, args)


def read_options(values: dict[str, Any] | str, name: str | None, config: AlgorithmConfig) -> dict[str, Any]:
    """Return `--algorithm_options` as a mapping.

    Raises:
        ValueError: it is not a JSON object, or the algorithm has no such option.
    """
    try:
        options = json.loads(values) if isinstance(values, str) else values
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"--algorithm_options must be a JSON object, got {values!r}")
    for former, new in RENAMED_OPTIONS.items():
        if former in options:
            logger.warning("--algorithm_options: %s has been renamed to %s; the old name still works", former, new)
            options = {new if option == former else option: value for option, value in options.items()}
    known = config.options
    for option in options:
        if option not in known:
            raise ValueError(
                f"--algorithm_options: --algorithm {name} has no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    return options
