"""From a command line to configurations: what is unknown, contradictory or without effect is refused here.

Precedence: defaults < `--algorithm` < `--config file.yaml` < the command line.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from vlm_grpo.cli.arguments import (
    ScriptArguments,
    flag_names,
    ineffective_flags,
    unknown_flags,
    wanted_value,
    without_flag,
)
from vlm_grpo.cli.machine import flag_conflicts
from vlm_grpo.table import unknown_name

TRAINERS = ["grpo", "rloo"]


class UsageError(ValueError):
    """A mistake that the user can mend; printed without a traceback."""


def parse(argv: list[str]) -> tuple[ScriptArguments, Any, Any]:
    """Script arguments, training configuration and model configuration of a command line.

    Raises:
        UsageError: flags that are unknown, contradict each other or would do nothing.
    """
    config = _config_values(argv)
    argv = without_flag(argv, "config", at_most=1)
    algorithm, trainer = _algorithm_and_trainer(argv, config)
    given = [*flag_names(argv), *config]
    _refuse(unknown_flags([*argv, *(f"--{name}" for name in config)], trainer))
    argv = _prepare_cpu_deepspeed(argv, given)
    from trl import ModelConfig, TrlParser

    from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig

    kind = VLMGRPOConfig if trainer == "grpo" else VLMRLOOConfig
    parser = TrlParser((ScriptArguments, kind, ModelConfig))
    parser.set_defaults_with_config(**{"trainer": trainer, **_recipe(algorithm, argv, config), **config})
    try:
        script, training, model = parser.parse_args_and_config(argv)
    except ValueError as error:  # a combination that TRL refuses
        raise UsageError(f"wrong flags:\n  {error}") from error
    values = {f.name: getattr(part, f.name) for part in (script, training, model) for f in dataclasses.fields(part)}
    problems = ineffective_flags([name for name in given if name in values], values) + flag_conflicts(model, training)
    problems += _unread_by(algorithm, given)
    if script.expert_data_file_paths and (algorithm is None or _algorithms().find_algorithm(algorithm).expert is None):
        with_plan = [name for name, recipe in _algorithms().ALGORITHMS.items() if recipe.expert is not None]
        problems.append(f"--expert_data_file_paths has no effect without --algorithm {', '.join(with_plan)}")
    _refuse(problems if model.model_name_or_path else [*problems, "no model: give --model_name_or_path"])
    return script, training, model


def _algorithms() -> Any:
    """The package of algorithms, which imports torch: not for `--help`."""
    from vlm_grpo import algorithms

    return algorithms


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UsageError("\n  ".join(["wrong flags:", *problems]))


def _algorithm_and_trainer(argv: list[str], config: dict[str, Any]) -> tuple[str | None, str]:
    """What --algorithm names, and the trainer: the given one, else the algorithm's, else GRPO's.

    Raises:
        UsageError: one of them is unknown, or they contradict each other.
    """
    algorithm = wanted_value(argv, "algorithm") or config.get("algorithm")
    trainer = wanted_value(argv, "trainer") or config.get("trainer")
    try:
        needed = _algorithms().find_algorithm(str(algorithm)).trainer if algorithm else None
    except (KeyError, ValueError) as error:
        raise UsageError(error.args[0]) from error
    if trainer is not None and trainer not in TRAINERS:
        raise UsageError(unknown_name("trainer", str(trainer), TRAINERS))
    if needed and trainer and trainer != needed:
        raise UsageError(f"--algorithm {algorithm} runs with --trainer {needed}, not with --trainer {trainer}")
    return algorithm, trainer or needed or "grpo"


def _recipe(algorithm: str | None, argv: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the algorithm; how a rollout is cut is left to who gives its size."""
    if algorithm is None:
        return {}
    name = "gradient_accumulation_steps"
    accumulation = wanted_value(argv, name) or config.get(name, 1)
    try:
        settings = _algorithms().recipe_settings(algorithm, int(accumulation))
    except (TypeError, ValueError) as error:
        raise UsageError(f"wrong flags:\n  --{name} {accumulation}: must be a whole number") from error
    if "generation_batch_size" in [*flag_names(argv), *config]:
        settings.pop("steps_per_generation", None)
    return settings


def _unread_by(algorithm: str | None, given: list[str]) -> list[str]:
    """One sentence for each given flag that the algorithm's own advantage or loss does not read."""
    if algorithm is None:
        return []
    recipe = _algorithms().find_algorithm(algorithm)
    unread = {*recipe.unread, *(() if recipe.is_advantage_trls else ("scale_rewards", "multi_objective_aggregation"))}
    return [f"--{flag} has no effect with --algorithm {algorithm}" for flag in sorted(unread & set(given))]


def _config_values(argv: list[str]) -> dict[str, Any]:
    """The mapping in the file that --config names; empty without one."""
    path = wanted_value(argv, "config")
    if path is None:
        return {}
    import yaml

    if not Path(path).is_file():
        raise UsageError(f"--config: no such file {path or '(nothing given)'}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: must hold a mapping from flag to value, got {type(values).__name__}")
    variables = values.pop("env", None) or {}
    if not isinstance(variables, dict):
        raise UsageError(f"--config {path}: 'env' must be a mapping from variable to value, got {variables!r:.80}")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
    return values


def _prepare_cpu_deepspeed(argv: list[str], given: list[str]) -> list[str]:
    """DeepSpeed on CPU processes needs the gloo backend before the training arguments exist."""
    is_wanted = "deepspeed" in given or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"  # by accelerate's launcher
    if not is_wanted or os.environ.get("DS_ACCELERATOR") != "cpu":
        return argv
    from accelerate import PartialState

    PartialState(backend="gloo")
    return argv if "accelerator_config" in given else [*argv, "--accelerator_config", '{"use_configured_state": true}']
