"""Parse the command line of a training run; unknown, conflicting and ineffective flags are errors.

Precedence: defaults < `--algorithm` < `--config file.yaml` < the command line.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

from vlm_grpo.cli.args import (
    FlagValues,
    ScriptArguments,
    argv_value,
    flag_names,
    ineffective_flags,
    known_flags,
    unknown_flags,
    without_flag,
)
from vlm_grpo.cli.batch_sizes import validate_batch_sizes
from vlm_grpo.cli.migration import SECTIONS, change_of_flag
from vlm_grpo.cli.preflight import validate_flags
from vlm_grpo.cli.translation import nested, translate, translate_keys
from vlm_grpo.redact import redact_text
from vlm_grpo.registry import unknown_name

if TYPE_CHECKING:
    from trl import ModelConfig

    from vlm_grpo.cli.trl_parser import FlagParser
    from vlm_grpo.trainers.config import VLMGRPOConfig


TRAINERS = ["grpo", "rloo"]
logger = logging.getLogger(__name__)


class UsageError(ValueError):
    """An error in flags or data that the user can fix; printed without a traceback."""


# Exceptions that libraries raise for invalid configuration values.
CONFIGURATION_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(ImportError, OSError, RuntimeError, NotImplementedError),
)

Configurations: TypeAlias = "tuple[ScriptArguments, VLMGRPOConfig, ModelConfig]"


def parse(argv: list[str]) -> Configurations:
    """Parse a command line into script arguments, training configuration and model configuration.

    Raises:
        UsageError: lists all flags that are unknown, invalid, conflicting or without effect.
    """
    problems: list[str] = []
    argv, config = _translate_flags(argv, problems)
    algorithm, trainer = _algorithm_and_trainer(argv, config, problems)
    settings = _settings(algorithm, argv, config)
    argv, config = _without_unknown_flags(argv, config, trainer, problems)
    given = [*flag_names(argv), *config]
    argv = _prepare_cpu_deepspeed(argv, given)
    parser = _flag_parser(trainer)
    argv = without_flag(argv, "trainer")  # already checked
    parser.set_defaults_with_config(**{**settings, **config, "trainer": trainer})
    values, value_problems = parser.read(argv, {**config, "trainer": trainer})
    value_problems += _validate_values(values, algorithm, given)
    parts = None if value_problems else _configurations(parser, argv, problems)
    if parts is not None:
        values = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
        problems += validate_flags(parts[2], parts[1]) + _validate_mappings(values)
    problems += value_problems + _validate_combinations(values, algorithm, given)
    _raise_problems(problems)
    assert parts is not None  # otherwise there are problems
    script, training, model = parts
    script.val_freq = max(script.val_freq, 0.0)  # -1 means never
    return script, training, model


def _translate_flags(argv: list[str], problems: list[str]) -> tuple[list[str], FlagValues]:
    """Translate flags and keys of other systems in the command line and the config file.

    A nested config file becomes arguments at the start of the command line, so that later flags override it.
    """
    known = known_flags("grpo") | known_flags("rloo")
    line = translate(argv, known)
    config = _config_values(line.words, problems)
    theirs = {name: value for name, value in config.items() if name in SECTIONS and not isinstance(value, str)}
    old = {name: value for name, value in config.items() if name not in known and change_of_flag(name)}
    file = translate_keys(nested(theirs))
    flags = translate([f"--{name}={value}" for name, value in old.items()], known)
    for part in (file, flags, line):
        problems += part.problems
    notes = [*file.notes, *flags.notes, *line.notes]
    if notes and os.environ.get("RANK", "0") == "0":  # all processes of a launcher parse the command line
        logger.warning("translated from other systems: %s", redact_text("; ".join(notes)))
    words = [*file.words, *flags.words, *without_flag(line.words, "config", at_most=1)]
    config = {name: value for name, value in config.items() if name not in theirs and name not in old}
    return _canonical_algorithm(words, config)


def _canonical_algorithm(argv: list[str], config: FlagValues) -> tuple[list[str], FlagValues]:
    """Return command line and config with the canonical name of the algorithm."""
    name = argv_value(argv, "algorithm")
    if name:
        argv = [*without_flag(argv, "algorithm", at_most=1), f"--algorithm={_algorithms().canonical_name(name)}"]
    if config.get("algorithm"):
        config = {**config, "algorithm": _algorithms().canonical_name(str(config["algorithm"]))}
    return argv, config


def _flag_parser(trainer: str) -> FlagParser:
    from trl import ModelConfig

    from vlm_grpo.cli.trl_parser import FlagParser
    from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig

    return FlagParser((ScriptArguments, VLMGRPOConfig if trainer == "grpo" else VLMRLOOConfig, ModelConfig))


def _configurations(parser: FlagParser, argv: list[str], problems: list[str]) -> Configurations | None:
    """Return the three configurations; if TRL or transformers raise, add a problem and return None."""
    try:
        script, training, model = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        return script, training, model
    except CONFIGURATION_ERRORS as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        problems.append(text if isinstance(error, ValueError | KeyError) else f"{type(error).__name__}: {text}")
        return None


def _validate_mappings(values: FlagValues) -> list[str]:
    """Return one sentence for each `*_kwargs` flag that is not a JSON object."""
    return [
        f"--{name} {value}: must be a JSON object"
        for name, value in values.items()
        if name.endswith("_kwargs") and value is not None and not isinstance(value, dict)
    ]


def _without_unknown_flags(
    argv: list[str], config: FlagValues, trainer: str, problems: list[str]
) -> tuple[list[str], FlagValues]:
    """Return command line and config without flags unknown to this trainer; append a problem for each."""
    for name in dict.fromkeys([*flag_names(argv), *config]):
        if unknown := unknown_flags([f"--{name}"], trainer):
            problems += unknown
            argv = without_flag(argv, name)
            config = {key: value for key, value in config.items() if key != name}
    return argv, config


def _validate_values(values: FlagValues, algorithm: str | None, given: list[str]) -> list[str]:
    """Return one sentence for each invalid value, and for invalid batch sizes."""
    from vlm_grpo.trainers.ranges import range_problems

    min_generations = 2 if algorithm is None else _algorithms().find_algorithm(algorithm).min_generations
    problems = range_problems(values, min_generations)
    sizes = [] if problems or not values else validate_batch_sizes(values, given, algorithm, min_generations)
    return problems + sizes + validate_output_dir(values.get("output_dir"))


def validate_output_dir(output_dir: str | None) -> list[str]:
    """Return one sentence if a folder, which need not exist yet, cannot be written to."""
    if output_dir is None:
        return []
    if not output_dir.strip():
        return ["--output_dir '': must name a folder"]
    folder = Path(output_dir).absolute()
    try:
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not existing.is_dir():
            return [f"--output_dir {output_dir}: must be a folder, but {existing} is a file"]
    except OSError as error:
        return [f"--output_dir {output_dir}: {error.strerror}"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"--output_dir {output_dir}: not writable: {existing} is read-only for this user"]
    return []


def _validate_combinations(values: FlagValues, algorithm: str | None, given: list[str]) -> list[str]:
    """Return one sentence for each conflicting or ineffective flag, and for a missing model."""
    if not values:  # parsing failed
        return []
    problems = ineffective_flags([name for name in given if name in values], values) + _unused_flags(algorithm, given)
    if algorithm is None or not _algorithms().find_algorithm(algorithm).family.needs_demonstrations:
        known = _algorithms().ALGORITHMS.items()
        with_demonstrations = [name for name, config in known if config.family.needs_demonstrations]
        unused = [name for name in ("expert_data_file_paths", "expert_key") if values.get(name)]
        problems += [f"--{name} has no effect without --algorithm {', '.join(with_demonstrations)}" for name in unused]
    return problems if values.get("model_name_or_path") else [*problems, "no model: set --model_name_or_path"]


def _algorithms() -> ModuleType:
    """Import the algorithms lazily, because they import torch and `--help` must not."""
    from vlm_grpo import algorithms

    return algorithms


def _raise_problems(problems: list[str]) -> None:
    if problems:
        raise UsageError("\n  ".join(["wrong flags:", *dict.fromkeys(problems)]))


def _algorithm_and_trainer(argv: list[str], config: FlagValues, problems: list[str]) -> tuple[str | None, str]:
    """Return the algorithm, and the trainer: the one that is set, else the algorithm's, else GRPO.

    Unknown or conflicting names are appended to `problems`.
    """
    algorithm = argv_value(argv, "algorithm") or config.get("algorithm")
    trainer = argv_value(argv, "trainer") or config.get("trainer") or None
    needed = None
    try:
        needed = _algorithms().find_algorithm(str(algorithm)).trainer if algorithm else None
    except (KeyError, ValueError) as error:
        problems.append(str(error.args[0]))
        algorithm = None
    if trainer is None and argv_value(argv, "trainer") is not None:
        problems.append(f"--trainer: must be followed by one of {', '.join(TRAINERS)}")
    if trainer is not None and trainer not in TRAINERS:
        problems.append(unknown_name("trainer", str(trainer), TRAINERS))
        trainer = None
    if needed and trainer and trainer != needed:
        problems.append(f"--algorithm {algorithm} needs --trainer {needed}, got --trainer {trainer}")
    return algorithm, trainer or needed or "grpo"


def _settings(algorithm: str | None, argv: list[str], config: FlagValues) -> FlagValues:
    """Return the settings of the algorithm, without `steps_per_generation` if the rollout size is set."""
    if algorithm is None:
        return {}
    name = "gradient_accumulation_steps"
    accumulation = str(argv_value(argv, name) or config.get(name, 1))
    # values that are not positive integers are reported together with other invalid values
    is_usable = accumulation.isdecimal() and len(accumulation) < 10
    settings = _algorithms().algorithm_settings(algorithm, max(1, int(accumulation)) if is_usable else 1)
    if "generation_batch_size" in [*flag_names(argv), *config]:
        settings.pop("steps_per_generation", None)
    return settings


def _unused_flags(algorithm: str | None, given: list[str]) -> list[str]:
    """Return one sentence for each flag that is set but not used by the algorithm."""
    if algorithm is None:
        return []
    entry = _algorithms().find_algorithm(algorithm)
    of_advantage = () if entry.uses_trl_advantage else ("scale_rewards", "multi_objective_aggregation")
    unused = {*entry.unused_settings, *of_advantage}
    return [f"--{flag} has no effect with --algorithm {algorithm}" for flag in sorted(unused & set(given))]


def _config_values(argv: list[str], problems: list[str]) -> FlagValues:
    """Return the content of the --config file; {} without one, or if it cannot be read (a problem)."""
    path = argv_value(argv, "config")
    try:
        return {} if path is None else read_config(path)
    except UsageError as error:
        problems.append(str(error))
        return {}


def read_config(path: str) -> FlagValues:
    """Return the mapping from flag to value in a YAML file, and set the environment variables in its `env`.

    Raises:
        UsageError: the file does not exist or is not such a mapping.
    """
    import yaml

    if not Path(path).is_file():
        raise UsageError(f"--config: no such file {path or '(nothing given)'}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: must contain a mapping from flag to value, got {type(values).__name__}")
    variables = values.pop("env", None) or {}
    if not isinstance(variables, dict):
        raise UsageError(f"--config {path}: 'env' must be a mapping from variable to value, got {variables!r:.80}")
    if non_text_keys := [name for name in values if not isinstance(name, str)]:
        raise UsageError(f"--config {path}: {non_text_keys[0]!r} is not a flag")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
    return values


def _prepare_cpu_deepspeed(argv: list[str], given: list[str]) -> list[str]:
    """Initialize the gloo backend, which DeepSpeed on CPU needs before the training arguments exist."""
    is_wanted = (
        "deepspeed" in given or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    )  # set by accelerate's launcher
    if not is_wanted or os.environ.get("DS_ACCELERATOR") != "cpu":
        return argv
    from accelerate import PartialState

    PartialState(backend="gloo")
    return argv if "accelerator_config" in given else [*argv, "--accelerator_config", '{"use_configured_state": true}']
