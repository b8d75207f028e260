"""Learning curves of bounded size: every point is the mean of the same number of log lines.

If there are too many points, neighbors are merged and each point becomes the mean of twice as many lines, so
that the resolution is the same along the whole curve. Evaluations are stored separately, as marks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vlm_grpo.records import JsonObject

POINTS = 1000  # an even number
MARKS = 400
EVALUATION = "eval_"
NOT_CURVES = ("epoch", "step", "total_flos", "train_loss", "train_runtime")
SPEEDS = ("eval_runtime", "_samples_per_second", "_steps_per_second")


@dataclass(frozen=True)
class CurvePoint:
    """The mean of `count` log lines, the last of them of optimizer step `step`."""

    step: int
    count: int
    values: dict[str, float]

    def line(self) -> JsonObject:
        """Return the point as a JSON object for the state file."""
        values = {name: float(f"{value:.6g}") for name, value in self.values.items()}
        return {"step": self.step, "count": self.count, "values": values}


def point_of(step: int, logs: Mapping[str, object]) -> CurvePoint:
    """Return the finite numbers of one log line that are plotted."""
    values = {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_CURVES
        if not name.endswith(SPEEDS)
    }
    return CurvePoint(step, 1, values)


def merge_points(first: CurvePoint, second: CurvePoint) -> CurvePoint:
    """Merge two points; a value that only one of them has is kept."""
    values = {**second.values, **first.values}
    for name in first.values.keys() & second.values.keys():
        total = first.values[name] * first.count + second.values[name] * second.count
        values[name] = total / (first.count + second.count)
    return CurvePoint(second.step, first.count + second.count, values)


@dataclass
class Curves:
    """All curves and marks of one training."""

    stride: int = 1  # log lines per point
    points: list[CurvePoint] = field(default_factory=list)
    open: CurvePoint | None = None  # incomplete point: the mean of fewer than `stride` lines
    marks: list[CurvePoint] = field(default_factory=list)
    columns: dict[str, int] = field(default_factory=dict)  # name: place in an encoded row
    _rows: list[str] = field(default_factory=list)  # encoded points, which no longer change

    def add(self, point: CurvePoint) -> None:
        """Add one log line, or a point of `lines()`."""
        if all(name.startswith(EVALUATION) for name in point.values):
            self._mark(point)
            return
        self.open = point if self.open is None else merge_points(self.open, point)
        if self.open.count >= self.stride:
            self.points.append(self.open)
            self.open = None
        if len(self.points) >= POINTS:
            self._thin()

    def _mark(self, point: CurvePoint) -> None:
        self.marks.append(point)
        if len(self.marks) > MARKS:
            self.marks = self.marks[::2]

    def _thin(self) -> None:
        """Halve the number of points."""
        pairs = zip(self.points[::2], self.points[1::2], strict=True)
        self.points = [merge_points(first, second) for first, second in pairs]
        self.stride *= 2
        self._rows = []

    def forget_after(self, step: int) -> None:
        """Remove everything after the step from which training resumes."""
        self.points = [point for point in self.points if point.step <= step]
        self.marks = [point for point in self.marks if point.step <= step]
        if self.open is not None and self.open.step > step:
            self.open = None
        self._rows = self._rows[: len(self.points)]

    @property
    def last_step(self) -> int:
        """Return the newest step of any point, -1 without points."""
        last = [*self.points[-1:], *self.marks[-1:], *([self.open] if self.open else [])]
        return max((point.step for point in last), default=-1)

    def lines(self) -> Iterator[JsonObject]:
        """Yield the lines for `restore_curves`, in order."""
        for point in self.points:
            yield point.line()
        if self.open is not None:
            yield self.open.line()
        for mark in self.marks:
            yield mark.line()

    def encoded(self) -> str:
        """Return JSON of the columns, of the points as `[step, value of each column]`, and of the marks."""
        closed = [self._row(point) for point in self.points[len(self._rows) :]]
        self._rows += closed
        rows = [*self._rows, *([self._row(self.open)] if self.open else [])]
        marks = [{"step": mark.step, "values": {k: _round(v) for k, v in mark.values.items()}} for mark in self.marks]
        return f'"columns":{script_dumps(list(self.columns))},"points":[{",".join(rows)}],"marks":{script_dumps(marks)}'

    def _row(self, point: CurvePoint) -> str:
        for name in point.values:
            self.columns.setdefault(name, len(self.columns))
        cells = [point.values.get(name) for name in self.columns]
        return script_dumps([point.step, *(None if cell is None else _round(cell) for cell in cells)])


def _round(value: float) -> float | int:
    """Round to five digits, which is enough for a plot."""
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short


def script_dumps(value: object) -> str:
    """Return JSON that is safe inside a script element of a page."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def restore_curves(stride: int, lines: list[JsonObject]) -> Curves:
    """Restore curves from `Curves.lines()` and later log lines."""
    curves = Curves(stride)
    for line in lines:
        curves.add(CurvePoint(line["step"], line["count"], line["values"]))
    return curves
