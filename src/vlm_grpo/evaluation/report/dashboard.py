"""Training dashboard: `output_dir/report/index.html` with curves and completions, rewritten at every logging step.

`trainer.add_callback(LiveReport(trainer))`; `vlm-grpo train` does so unless `--live_report false`. The page needs no
server and no network. Its folder has the images and `state.jsonl`, from which a resumed training continues it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from vlm_grpo.evaluation.report.gallery import GROUPS, CompletionGroup, Gallery, groups_of
from vlm_grpo.evaluation.report.gallery import restore_gallery as restored_gallery
from vlm_grpo.evaluation.report.learning_curves import Curves, point_of, script_dumps
from vlm_grpo.evaluation.report.learning_curves import restore_curves as restored_curves
from vlm_grpo.io import whole_file
from vlm_grpo.records import JsonObject
from vlm_grpo.rollouts.logged_rollout import LoggedRollout

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from vlm_grpo.trainers.grpo import VLMGRPOTrainer
    from vlm_grpo.trainers.rloo import VLMRLOOTrainer


logger = logging.getLogger(__name__)

TAIL_BYTES = 200_000  # minimum size of appended state (and at least that of the last full write) before a full rewrite
IMAGE_NAME = re.compile(r"[0-9a-f]{16}\.jpg")


class ReportFolder:
    """The files of a report and their content.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.images = self.folder / "images"
        self.state = self.folder / "state.jsonl"
        self.curves, self.gallery = Curves(), Gallery()
        self._whole = self._tail = 0  # bytes of the last full write of the state, and appended since
        self._written: set[str] = set()  # images

    def restore(self, step: int) -> None:
        """Start an empty report (step 0), or restore the one up to the step from which training resumes."""
        self.images.mkdir(parents=True, exist_ok=True)
        self.curves, self.gallery = _read_state(self.state) if step else (Curves(), Gallery())
        self.curves.forget_after(step)
        self.gallery.forget_after(step)
        self._written = {path.name for path in self.images.iterdir() if IMAGE_NAME.fullmatch(path.name)}
        self._write_state()

    def add_logs(self, step: int, logs: Mapping[str, object]) -> None:
        """Add one log line."""
        point = point_of(step, logs)
        if point.values:
            self.curves.add(point)
            self._append("point", point.line())

    def add_group(self, group: CompletionGroup, images: Mapping[str, bytes]) -> None:
        """Add a group of completions; `images` has the bytes of its images, and possibly others."""
        for name in set(group["images"]) - self._written:
            write_atomically(self.images / name, images[name])
            self._written.add(name)
        self._append("group", self.gallery.add(group))

    def write_page(self, facts: JsonObject) -> None:
        """Write the page, then delete images that it no longer shows."""
        head, script, tail = _template()
        data = f'{{"facts":{script_dumps(facts)},{self.curves.encoded()},{self.gallery.encoded()}}}'
        write_atomically(self.folder / "index.html", f"{head}{data}{script}{tail}")
        for name in self._written - self.gallery.image_names:
            (self.images / name).unlink(missing_ok=True)
        self._written &= self.gallery.image_names

    def _append(self, kind: str, content: JsonObject) -> None:
        if self._tail > max(TAIL_BYTES, self._whole):
            self._write_state()
            return
        with self.state.open("ab") as file:
            self._tail += file.write(_state_line({kind: content}))

    def _write_state(self) -> None:
        lines: list[JsonObject] = [{"strides": [self.curves.stride, self.gallery.stride]}]
        lines += [{"point": line} for line in self.curves.lines()]
        lines += [{"group": group} for group in self.gallery.groups]
        content = b"".join(_state_line(line) for line in lines)
        write_atomically(self.state, content)
        self._whole, self._tail = len(content), 0


def _state_line(content: JsonObject) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _read_state(path: Path) -> tuple[Curves, Gallery]:
    """Return a report's content, empty without a report; an incomplete line, left by a kill, is skipped."""
    strides, points, groups = [1, 1], [], []
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        strides = line.get("strides", strides)
        points += [line["point"]] if "point" in line else []
        groups += [line["group"]] if "group" in line else []
    return restored_curves(strides[0], points), restored_gallery(strides[1], groups)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically, without waiting for the disk."""
    with whole_file(path, sync=False) as file:
        file.write(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


@cache
def _template() -> tuple[str, str, str]:
    """Return three parts of the page: before its data, from there to the script, and the end."""
    home = files("vlm_grpo.evaluation.report")
    head, rest = home.joinpath("dashboard.html").read_text(encoding="utf-8").split("<!--data-->")
    middle, tail = rest.split("<!--script-->")
    return head, middle + home.joinpath("dashboard.js").read_text(encoding="utf-8"), tail


class LiveReport(TrainerCallback):
    """Writes `output_dir/report/index.html` at every logging step, on the main process only.

    A resumed training continues the page; a new one replaces it. Write errors (such as a full disk) are
    logged once and do not stop the training. Nothing is gathered for the page: it shows completions of the main
    process.

    Args:
        trainer: a trainer of this package; for other TRL trainers, the page has curves but no completions.
        folder: folder of the page (default: `output_dir/report`).
    """

    def __init__(self, trainer: VLMGRPOTrainer | VLMRLOOTrainer, folder: str | Path | None = None) -> None:
        self.trainer = trainer
        self.report: ReportFolder | None = None  # during training, on the main process
        self.folder = Path(folder or Path(trainer.args.output_dir or "") / "report")
        self._latest: LoggedRollout | None = None  # not shown yet
        self._started = (0.0, 0)  # when, and at which step
        self._has_failed = False
        if trainer.accelerator.is_main_process:
            trainer.watch_rollout = self.watch

    def watch(self, rollout: LoggedRollout) -> None:
        """Store the newest rollout until the next logging step."""
        self._latest = rollout.first(GROUPS * (self.trainer.num_generations or 1))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: object
    ) -> None:
        if not self.trainer.accelerator.is_main_process:
            return
        self._started = (time.time(), state.global_step)
        self.report = ReportFolder(self.folder)
        try:
            self.report.restore(state.global_step)
            last_step = self.report.curves.last_step
            for entry in state.log_history:  # logs of a training whose report is missing
                if entry["step"] > last_step:
                    self.report.add_logs(int(entry["step"]), entry)
        except OSError as error:
            self._failed(error)
        self._write(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **_: object,
    ) -> None:
        if self.report is None:
            return
        try:
            self.report.add_logs(state.global_step, logs or {})
            self._add_groups()
        except OSError as error:
            self._failed(error)
        self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: object
    ) -> None:
        if self.report is not None:
            self._write(state, is_over=True)
            self.report = None

    def _add_groups(self) -> None:
        rollout, self._latest = self._latest, None
        if rollout is None or self.report is None:
            return
        trainer = self.trainer
        weights = dict(zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True))
        groups, images = groups_of(rollout, trainer.num_generations or 1, weights)
        for group in groups:
            self.report.add_group(group, images)

    def _write(self, state: TrainerState, is_over: bool = False) -> None:
        if self.report is None:
            return
        try:
            self.report.write_page(self._facts(state, is_over))
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._has_failed:
            logger.warning("%s could not be written, training continues without it: %s", self.folder, error)
        self._has_failed = True

    def _facts(self, state: TrainerState, is_over: bool) -> JsonObject:
        """Return the facts at the top of the page."""
        since, first = self._started
        now = time.time()
        model = str(getattr(getattr(self.trainer.model, "config", None), "_name_or_path", "") or "")
        return {
            "title": Path(self.trainer.args.output_dir or "").resolve().name,
            "model": Path(model).name if Path(model).is_dir() else model,
            "trainer": type(self.trainer).__name__,
            "processes": self.trainer.accelerator.num_processes,
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": round(state.epoch or 0.0, 3),
            "epochs": state.num_train_epochs,
            "seconds_a_step": (now - since) / max(1, state.global_step - first),
            "since": since,
            "written": now,
            "is_over": is_over,
            "warning": getattr(getattr(self.trainer, "no_signal", None), "message", None),
        }
