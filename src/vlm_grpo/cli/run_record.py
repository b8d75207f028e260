"""`run.json`: command, resolved settings, file digests and versions of a run, without secrets.

It is written to output_dir and every checkpoint. `run.json` belongs to the newest run; records of earlier runs in the
same folder are renamed to `run_1.json` (the first), `run_2.json` and so on. run_changes.py compares two of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from vlm_grpo.data.paths import split_paths
from vlm_grpo.io import write_whole
from vlm_grpo.records import JsonObject
from vlm_grpo.redact import redact, redact_command
from vlm_grpo.rewards.adapter import split_spec

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from trl import ModelConfig

    from vlm_grpo.cli.args import ScriptArguments
    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer
    from vlm_grpo.trainers.rloo import VLMRLOOTrainer


NAME = "run.json"
EARLIER = re.compile(r"run_(\d+)\.json")
FORMAT = 2  # version of the record; version 1 had texts such as "None" instead of JSON values
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed")
WHOLE = 64 * 2**20  # bytes; of larger files, only both ends are read for the digest
END = 2**20
WEIGHTS = (".safetensors", ".bin")


def run_record(
    script: ScriptArguments,
    training: VLMGRPOConfig,
    model: ModelConfig,
    dataset: Dataset,
    *,
    rewards: Sequence[str],
    command: Sequence[str],
) -> JsonObject:
    """Return the record of a run that is about to start.

    Args:
        script, training, model: the resolved configurations.
        dataset: the training rows, or a stream of them.
        rewards: `NAME:WEIGHT` of each reward, including the task's defaults.
        command: the arguments of the command line.
    """
    names = [name for name, _ in map(split_spec, rewards)]
    record = {
        "format": FORMAT,
        "command": redact_command(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": None,
        "script": {**dataclasses.asdict(script), "reward_funcs": list(rewards)},
        "training": _training(training),
        "model": dataclasses.asdict(model),
        "base_model": {
            "name": model.model_name_or_path,
            "revision": model.model_revision,
            "files": _model_digest(Path(str(model.model_name_or_path))),
        },
        "data": {"files": _digests(_data_paths(script)), "rows": len(dataset) if hasattr(dataset, "__len__") else None},
        "code": _digests(_code_paths(script, names)),
        "processes": training.world_size,
        "distributed": _distributed(training),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }
    return redact(to_json_types(record))


def _distributed(training: VLMGRPOConfig) -> str:
    """Return the type of distributed training; accelerate's state reports FSDP only once a trainer exists."""
    shards = training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return "FSDP" if shards else training.distributed_state.distributed_type


def save_record(trainer: VLMGRPOTrainer | VLMRLOOTrainer, record: JsonObject) -> None:
    """Write the record to output_dir (after all processes have read the previous one) and to checkpoints."""
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        write_run_record(record, trainer.args.output_dir or "")
    trainer.add_callback(RecordInCheckpoints(record))


def write_run_record(record: JsonObject, folder: str | Path) -> Path:
    """Write `run.json` to a folder; an existing one is renamed to the next `run_1.json`, `run_2.json`, ..."""
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        numbers = [int(match[1]) for other in path.parent.iterdir() if (match := EARLIER.fullmatch(other.name))]
        path.rename(path.with_name(f"run_{max(numbers, default=0) + 1}.json"))
    copy_run_record(record, folder)
    return path


def copy_run_record(record: JsonObject, folder: str | Path) -> None:
    """Write `run.json` to a checkpoint, replacing an existing one."""
    write_whole(Path(folder) / NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


class RecordInCheckpoints(TrainerCallback):
    """Writes the record of the run to each checkpoint; a resumed run is compared with it."""

    def __init__(self, record: JsonObject) -> None:
        self.record = record

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: object) -> None:
        if args.should_save:
            copy_run_record(self.record, Path(args.output_dir or "") / f"checkpoint-{state.global_step}")


def read_record(checkpoint: str | Path) -> JsonObject | None:
    """Return the record of the run that wrote a checkpoint, from the checkpoint or its output_dir; None without one."""
    for folder in (Path(checkpoint), Path(checkpoint).absolute().parent):
        try:
            record = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            return record
    return None


def to_json_types(value: object) -> object:
    """Convert a value to JSON types."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return to_json_types(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [to_json_types(item) for item in value]
    return str(value)


def _training(training: VLMGRPOConfig) -> JsonObject:
    """Return the training arguments without tokens, for which the Trainer always writes a placeholder."""
    values = training.to_dict()
    return {
        name: None if name.endswith("_token") and getattr(training, name) is None else value
        for name, value in values.items()
    }


def _data_paths(script: ScriptArguments) -> list[str]:
    return [
        *split_paths(script.data_file_paths),
        *split_paths(script.expert_data_file_paths),
        *([script.dataset_name] if script.dataset_name else []),
    ]


def _code_paths(script: ScriptArguments, rewards: Sequence[str]) -> list[str]:
    """Return the user's files with rewards, environments and prompts."""
    specs = [*rewards, *(script.environment or [])]
    code = [f"{name.rpartition('.py:')[0]}.py" for name in specs if ".py:" in name]
    return [*code, *(path for path in (script.format_prompt, script.chat_template_path) if path)]


def _digests(paths: Iterable[str]) -> dict[str, str | None]:
    """Return the digest of each regular file; None for anything else, such as Hub names."""
    return {path: _digest(Path(path)) if os.path.isfile(path) else None for path in dict.fromkeys(paths)}


def _digest(path: Path, whole: int = WHOLE, end: int = END) -> str:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size > whole:
            digest.update(file.read(end))
            file.seek(-end, os.SEEK_END)
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _model_digest(folder: Path) -> str | None:
    """Return a digest of a model folder (its configuration and parts of its weights); None for a Hub name."""
    if not folder.is_dir():
        return None
    paths = [folder / "config.json", *sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)]
    parts = [f"{path.name} {_digest(path, 2**16, 2**16)}" for path in paths if path.is_file()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
