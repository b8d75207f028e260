"""Statistics of a data set, from its records and the headers of its images. Decodes no image."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from vlm_grpo.answer_parser import extract_json
from vlm_grpo.boxes import boxes_in
from vlm_grpo.data.errors import show_value
from vlm_grpo.data.images import URL_STARTS, image_size
from vlm_grpo.records import ImageRef, JsonObject, Record
from vlm_grpo.rewards.accuracy import ground_truth_text, infer_method

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "max": 1.0}
DUPLICATES_SHOWN = 10
Length = Callable[[Record], int]


class Statistics:
    """Statistics collected record by record; see `summary`.

    Args:
        prompt_length, answer_length: return the length of a record's prompt and gold answer.
        unit: unit of these lengths, "words" or "tokens".
        common: number of most common answers to list.
    """

    def __init__(self, prompt_length: Length, answer_length: Length, unit: str, common: int = 10) -> None:
        self.measures = {f"prompt {unit}": prompt_length, f"answer {unit}": answer_length}
        self.lengths = {name: array("q") for name in self.measures}
        self.common = common
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
        self.answers: Counter[str] = Counter()
        self.seen: dict[int, tuple[str, int]] = {}  # hash of images and question: its first row, hash of the answer
        self.duplicates: list[str] = []
        self.duplicate_rows = self.contradicting = self.rows = 0
        self.images = _Images()

    def add(self, record: Record) -> None:
        """Add one record; if its length cannot be measured (ValueError), it is not counted."""
        measured = {name: measure(record) for name, measure in self.measures.items()}
        self.rows += 1
        for name, value in COUNTED.items():
            self.counts[name][value(record)] += 1
        for name, length in measured.items():
            self.lengths[name].append(length)
        answer = ground_truth_text(record.answer)
        self.answers[answer] += 1
        for ref in record.images:
            self.images.add(ref)
        self._compare(record, hash(answer))

    def _compare(self, record: Record, answer: int) -> None:
        key = hash((tuple(ref.key for ref in record.images), " ".join(record.question.split())))
        first, first_answer = self.seen.setdefault(key, (record.where, answer))
        if first == record.where:
            return
        self.duplicate_rows += 1
        self.contradicting += first_answer != answer
        if len(self.duplicates) < DUPLICATES_SHOWN:
            self.duplicates.append(
                f"{record.where} repeats {first}{'' if first_answer == answer else ', with another answer'}"
            )

    def summary(self) -> JsonObject:
        """Return all statistics as JSON values."""
        top = self.answers.most_common(self.common)
        return {
            "rows": self.rows,
            **{name: dict(sorted(counter.items(), key=_largest)) for name, counter in self.counts.items()},
            "images": {"different": len(self.images.known), **self.images.skipped},
            **{name: quantiles(values) for name, values in (*self.lengths.items(), *self.images.sizes.items())},
            "duplicates": {"rows": self.duplicate_rows, "with another answer": self.contradicting},
            "first duplicates": self.duplicates,
            "different answers": len(self.answers),
            "most common answers": {answer: count for answer, count in top},
            "majority baseline": top[0][1] / self.rows if top else None,
        }


class _Images:
    """Sizes of images; each image is read once."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.sizes = {f"image {name}": array("q") for name in ("pixels", "width", "height")}
        self.skipped: Counter[str] = Counter()

    def add(self, ref: ImageRef) -> None:
        key = hash(ref.key)
        if key in self.known:
            return
        self.known.add(key)
        if isinstance(ref.source, str) and ref.source.startswith(URL_STARTS):
            self.skipped["URLs, not fetched"] += 1
            return
        try:
            width, height = image_size(ref)
        except ValueError:
            self.skipped["unreadable"] += 1
            return
        for values, value in zip(self.sizes.values(), (width * height, width, height), strict=True):
            values.append(value)


def answer_type(record: Record) -> str:
    """Return `box`, `boxes`, the accuracy method that fits the gold answer, or `object`."""
    truth = ground_truth_text(record.answer)
    box_count = len(boxes_in(truth)) if truth.startswith(("[", "{")) else 0
    if box_count:
        return "box" if box_count == 1 else "boxes"
    return "object" if isinstance(extract_json(truth), dict) else infer_method(truth, record.options)


def _images_per_row(record: Record) -> str:
    return str(len(record.images))


COUNTED: dict[str, Callable[[Record], str]] = {
    "tasks": lambda record: record.task,
    "accuracy methods": lambda record: record.method or "of the task",
    "answer types": answer_type,
    "images per row": _images_per_row,
}


def _largest(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def count_words(text: str) -> int:
    """Return the number of whitespace-separated words."""
    return len(text.split())


def quantiles(values: array[int]) -> dict[str, float]:
    """Return minimum, percentiles, maximum (all observed values) and mean; empty without values."""
    import numpy as np

    if not values:
        return {}
    values_at = np.quantile(np.frombuffer(values, dtype=np.int64), list(QUANTILES.values()), method="inverted_cdf")
    named = dict(zip(QUANTILES, map(int, values_at), strict=True))
    return {**named, "mean": round(sum(values) / len(values), 1)}


def summary_lines(summary: JsonObject) -> Iterator[str]:
    """Yield the statistics as lines of aligned text."""
    tabular = {name: value for name, value in summary.items() if isinstance(value, Mapping) and "mean" in value}
    for name, value in summary.items():
        if name in tabular:
            yield from _table(tabular) if name == next(iter(tabular)) else ()
        elif name == "most common answers":
            yield f"{name}:"
            for answer, count in value.items():
                yield f"  {count:>9,}  {count / summary['rows']:>6.1%}  {show_value(answer)}"
        elif name == "majority baseline" and value is not None:
            yield f"{name}: {value:.1%} (accuracy of always giving the most common answer)"
        elif isinstance(value, list):
            yield from (f"  {item}" for item in value)
        elif isinstance(value, Mapping) and value:
            yield f"{name}: " + ", ".join(f"{key} {_number(number)}" for key, number in value.items())
        elif value not in ({}, None):
            yield f"{name}: {_number(value)}"


def _table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield a table of percentiles, one line per name."""
    header = ["", *QUANTILES, "mean"]
    lines = [header, *([name, *(_number(row[key]) for key in header[1:])] for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        yield "  ".join([line[0].ljust(widths[0]), *cells])


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
