"""Compare the settings of a resumed run with those of the run that wrote the checkpoint.

Settings that determine the meaning of the checkpoint's state, such as the model and the optimizer, must not change. All
other settings may change; the differences are printed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from vlm_grpo.cli.run_record import FORMAT, read_record
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import JsonObject

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

NO_PLACE = "the position in the data is meaningless for other data"
WIDTH = 40  # maximum width of a value in the table
# Settings that define the parameters, their optimizer and the order of the rows.
FIXED = {
    **dict.fromkeys(
        ("freeze_vision_modules", "freeze_projector", "freeze_language_model"), "other parameters are trained"
    ),
    **dict.fromkeys(
        ("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save"),
        "the adapter is different",
    ),
    **dict.fromkeys(("use_rslora", "use_dora"), "the adapter is different"),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"), "the adapter was trained on other weights"
    ),
    "sync_ref_model": "the reference model has been updated, or is missing in the checkpoint",
    "trainer": "the rollout and the state of the checkpoint are those of the other trainer",
    "streaming": "the position in the data is counted differently",
}
SAME_OPTIMIZER = ({"adamw_torch", "adamw_torch_fused"},)
# Settings without effect on a step: output, logging, evaluation and data loading.
WITHOUT_EFFECT = re.compile(
    r"output_dir|resume_from_checkpoint|dry_run|live_report|disable_tqdm|report_to|run_name|project|debug|local_rank"
    r"|(logging|log|save|eval|val|hub|push_to|trackio|dataloader|load_best|include|batch_eval|skip_memory)_.*"
    r"|(per_device_eval|num_generations_eval|num_completions_to_print|metric_for_best|greater_is_better).*"
    r"|enable_jit_checkpoint|prediction_loss_only|ddp_timeout|allow_outside|use_huggingface_dataset|.*_server_timeout"
)
READ_APART = {"reward_funcs", "data_file_paths", "expert_data_file_paths", "dataset_name"}
READ_APART |= {"model_name_or_path", "model_revision"}


class FirstStep(TrainerCallback):
    """Records whether the first step has begun; a ValueError before it means an incompatible checkpoint."""

    has_begun = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: object
    ) -> None:
        self.has_begun = True


@dataclass(frozen=True)
class SettingChange:
    """A changed setting; `reason` is why it must not change, None if it may."""

    name: str
    then: object
    now: object
    reason: str | None = None


def compare_records(then: JsonObject, now: JsonObject, step: int) -> list[SettingChange]:
    """Return the differences of two records, forbidden ones first; `step` is the step of the checkpoint."""
    differences = [*_model_changes(then, now), *_data_changes(then, now), *_setting_changes(then, now, step)]
    differences += _changed("reward", _rewards(then), _rewards(now))
    differences += [change for key in ("code", "versions") for change in _changed(key, then.get(key), now[key])]
    for key in ("processes", "distributed", "commit"):
        if then.get(key) != now.get(key):
            differences.append(SettingChange(key, then.get(key), now.get(key)))
    return sorted(differences, key=lambda change: change.reason is None)


def _setting_changes(then: JsonObject, now: JsonObject, step: int) -> Iterator[SettingChange]:
    for part in ("script", "training", "model"):
        old_values, values = then.get(part) or {}, now[part]
        for name in [name for name in values if name not in READ_APART and not WITHOUT_EFFECT.fullmatch(name)]:
            before = old_values.get(name)
            if name in old_values and before != values[name]:
                yield SettingChange(f"--{name}", before, values[name], _reason(name, before, values[name], step))


def _reason(name: str, then: Any, now: Any, step: int) -> str | None:
    """Return why a setting must not change; None if it may."""
    if name == "optim":
        is_same = any({then, now} <= group for group in SAME_OPTIMIZER)
        return None if is_same else "the optimizer state in the checkpoint is of another kind"
    if name == "max_steps":
        return f"the checkpoint is already at step {step}" if 0 < now < step else None
    if name == "algorithm":
        return None if _state_of(then) == _state_of(now) else "only one of them has additional state in checkpoints"
    if name == "algorithm_options":
        kinds = [(value or {}).get("value_model") for value in (then, now)]
        return None if kinds[0] == kinds[1] else "the value model is different"
    return FIXED.get(name)


def _state_of(algorithm: str | None) -> tuple[bool, bool]:
    """Return whether an algorithm has a value model, and whether it has demonstrations."""
    from vlm_grpo.algorithms import TRL_SETTINGS, find_algorithm

    family = (find_algorithm(algorithm) if algorithm else TRL_SETTINGS).family
    return family.needs_values, family.needs_demonstrations


def _model_changes(then: JsonObject, now: JsonObject) -> Iterator[SettingChange]:
    """Yield changes of the model, which is compared by its files; the folder may have been moved."""
    before, after = then.get("base_model") or {}, now["base_model"]
    if before.get("files") and before.get("files") == after["files"]:
        return
    names = [_shown_model(each) for each in (before, after)]
    if names[0] == names[1] and before.get("files") != after["files"]:
        names = [f"{names[0]} (files {before.get('files')})", f"{names[1]} (files {after['files']})"]
    if names[0] != names[1]:
        yield SettingChange("--model_name_or_path", names[0], names[1], "the checkpoint belongs to another model")


def _shown_model(model: JsonObject) -> str:
    revision = model.get("revision")
    return f"{model.get('name')}" + (f" at {revision}" if revision not in (None, "main") else "")


def _data_changes(then: JsonObject, now: JsonObject) -> Iterator[SettingChange]:
    """Yield changes of the content and order of data files; rows may be corrected or removed."""
    before, after = then.get("data") or {}, now["data"]
    old, new = before.get("files") or {}, after["files"]
    is_same = list(old.values()) == list(new.values()) and (None not in old.values() or list(old) == list(new))
    is_other = not is_same and list(old) != list(new)
    if is_other:
        yield SettingChange("data", list(old), list(new), NO_PLACE)
    if before.get("rows") != after["rows"]:
        reason = NO_PLACE if is_same or is_other else None
        yield SettingChange("rows of data", before.get("rows"), after["rows"], reason)
    for path in [path for path in new if not (is_same or is_other) and old[path] != new[path]]:
        yield SettingChange(f"content of {Path(path).name}", old[path], new[path])


def _rewards(record: JsonObject) -> dict[str, float]:
    from vlm_grpo.rewards.adapter import split_spec

    return dict(split_spec(spec) for spec in (record.get("script") or {}).get("reward_funcs") or [])


def _changed(kind: str, then: JsonObject | None, now: JsonObject) -> list[SettingChange]:
    """Return the keys whose values differ between two mappings."""
    before = then or {}
    names = dict.fromkeys([*before, *now])
    return [
        SettingChange(f"{kind} {name}", before.get(name, "-"), now.get(name, "-"))
        for name in names
        if before.get(name, "-") != now.get(name, "-")
    ]


def check_changes(checkpoint: str | Path, record: JsonObject, *, is_main: bool) -> None:
    """Compare a run with the one that wrote the checkpoint it resumes; print the differences once.

    Raises:
        UsageError: a setting must not change.
    """
    then = read_record(checkpoint)
    if then is None or then.get("format") != FORMAT:
        logger.warning("%s: no run.json of this version, so its settings are not compared", checkpoint)
        return
    differences = compare_records(then, record, step_of(checkpoint))
    if any(change.reason for change in differences):
        raise UsageError(
            f"--resume_from_checkpoint {checkpoint}: settings marked with ! must not change\n"
            f"{table(differences)}\n"
            "Resume with the old values, or start a new run from its weights: --model_name_or_path "
            f"{checkpoint} and another --output_dir"
        )
    if differences and is_main:
        message = f"vlm-grpo train: resuming from {checkpoint} with changed settings"
        print(f"{message}\n{table(differences)}", file=sys.stderr)


def table(differences: list[SettingChange]) -> str:
    """Return the changes as a table: setting, old value, new value, and the reason if it must not change."""
    rows = [("setting", "then", "now", "")]
    rows += [(change.name, _short(change.then), _short(change.now), change.reason or "") for change in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for name, then, now, reason in rows:
        mark = "! " if reason else "  "
        cells = f"{mark}{name:<{widths[0]}}  {then:<{widths[1]}}  {now:<{widths[2]}}"
        lines.append((f"{cells}  {reason}" if reason else cells).rstrip())
    return "\n".join(lines)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else f"...{text[3 - WIDTH :]}"


def step_of(checkpoint: str | Path) -> int:
    """Return the optimizer step that a checkpoint was written after."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state.get("global_step", 0))
