"""jsonl files of conversations: a line becomes a record when it is asked for; every bad line can be listed first."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlm_grpo.data.images import URL_STARTS, image_ref
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.rewards.accuracy import METHODS
from vlm_grpo.text import extract_answer

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TAKEN = ("id", "image", "images", "conversations", "accu_reward_method")


class Problem(NamedTuple):
    """One thing that is wrong with the data."""

    where: str
    field: str
    found: str
    expected: str


class DataError(ValueError):
    """All problems of a data set, one a line."""

    def __init__(self, problems: list[Problem], shown: int = 50) -> None:
        self.problems = problems
        lines = [f"{p.where}: {p.field}: found {p.found}, expected {p.expected}" for p in problems[:shown]]
        more = [f"... and {len(problems) - shown} more"] if len(problems) > shown else []
        super().__init__("\n".join([f"{len(problems)} problem(s) in the data", *lines, *more]))


class BadRecord(ValueError):
    """One line that is no record."""

    def __init__(self, where: str, name: str, found: Any, expected: str) -> None:
        self.problem = Problem(where, name, found if isinstance(found, str) else repr(found)[:80], expected)
        at, field_name, seen, wanted = self.problem
        super().__init__(f"{at}: {field_name}: found {seen}, expected {wanted}")


@dataclass
class JsonlSource:
    """One jsonl file with its image folder; `len` and `read(index)` see its non-blank lines."""

    path: Path
    image_folder: str = ""
    method: str | None = None
    task: str = "default"
    allow_outside: bool = False
    offsets: array = field(default_factory=lambda: array("q"))
    lines: array = field(default_factory=lambda: array("q"))

    def __post_init__(self) -> None:
        """Find the lines.

        Raises:
            DataError: the file is missing or has no line.
        """
        if not self.path.is_file():
            raise DataError([Problem(str(self.path), "file", "nothing", "a jsonl file")])
        with self.path.open("rb") as file:
            position = 0
            for number, line in enumerate(file, 1):
                if line.removeprefix(b"\xef\xbb\xbf").strip():
                    self.offsets.append(position)
                    self.lines.append(number)
                position += len(line)
        if not self.offsets:
            raise DataError([Problem(str(self.path), "file", "no lines", "one JSON object a line")])

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, index: int) -> Record:
        """The record of one line.

        Raises:
            BadRecord: the line is not a record; the error names file and line.
        """
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return self.parse(file.readline(), f"{self.path}:{self.lines[index]}")

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, line by line."""
        for index in range(len(self)):
            try:
                record = self.read(index)
                yield from missing_images(record)
            except BadRecord as error:
                yield error.problem

    def parse(self, line: bytes, where: str) -> Record:
        """The record in one line of bytes."""
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRecord(where, "line", f"byte {error.start} is not UTF-8", "UTF-8 text") from error
        except (ValueError, RecursionError) as error:
            raise BadRecord(where, "line", str(error), "one JSON object") from error
        if not isinstance(row, dict):
            raise BadRecord(where, "line", type(row).__name__, "a JSON object")
        return self._record(row, where)

    def _record(self, row: dict[str, Any], where: str) -> Record:
        if row.get("video") or row.get("videos"):
            raise BadRecord(where, "video", "a video", "images or text only; video is not supported in this version")
        turns = self._turns(row.get("conversations"), where)
        images = self._images(row.get("image", row.get("images")), where)
        method = row.get("accu_reward_method") or self.method
        if method is not None and method not in METHODS:
            raise BadRecord(where, "accu_reward_method", method, f"one of {', '.join(METHODS)}")
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
        question, answer = turns[-2]["content"], turns[-1]["content"]
        markers = sum(str(turn["content"]).count("<image>") for turn in turns[:-1])
        if markers > len(images):
            raise BadRecord(
                where, "conversations", f"{markers} <image> markers", f"at most {len(images)}, one per image"
            )
        return Record(
            id=row.get("id", where),
            question=question,
            answer=(extract_answer(answer) or answer) if isinstance(answer, str) else answer,
            images=images,
            system=system,
            history=tuple(turns[:-2]),
            task=self.task,
            method=method,
            options=tuple(row.get("options") or row.get("choices") or ()),
            reference_steps=tuple(row.get("reference_steps") or ()),
            where=where,
            extra={name: value for name, value in row.items() if name not in TAKEN},
        )

    def _turns(self, value: Any, where: str) -> list[dict[str, Any]]:
        if not isinstance(value, list) or len(value) < 2:
            raise BadRecord(where, "conversations", value, "a list of turns: human, then gpt")
        turns = [self._turn(turn, where) for turn in value]
        roles = [turn["role"] for turn in turns]
        asked = roles[1:] if roles[0] == "system" else roles
        if not asked or len(asked) % 2 or asked != ["user", "assistant"] * (len(asked) // 2):
            raise BadRecord(where, "conversations", " ".join(roles), "human and gpt in turn, gpt last")
        return turns

    def _turn(self, turn: Any, where: str) -> dict[str, Any]:
        if not isinstance(turn, dict) or turn.get("from") not in ROLES or "value" not in turn:
            raise BadRecord(where, "conversations", turn, '{"from": "human" or "gpt", "value": ...}')
        role = ROLES[turn["from"]]
        if role != "assistant" and not isinstance(turn["value"], str):
            raise BadRecord(where, "conversations", turn["value"], "text as the value of a human or system turn")
        return {"role": role, "content": turn["value"]}

    def _images(self, value: Any, where: str) -> tuple[ImageRef, ...]:
        paths = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) and path for path in paths):
            raise BadRecord(where, "image", value, "a path or a list of paths")
        return tuple(self._resolve(path, where) for path in paths)

    def _resolve(self, path: str, where: str) -> ImageRef:
        if path.startswith((*URL_STARTS, "data:image/")):
            return image_ref(path, where)
        whole = Path(self.image_folder) / path
        folder = Path(self.image_folder).absolute()
        inside = not self.image_folder or Path(_normal(whole.absolute())).is_relative_to(_normal(folder))
        if not inside and not self.allow_outside:
            raise BadRecord(where, "image", path, f"a path inside {self.image_folder}; --allow_outside allows others")
        return ImageRef(str(whole), where)


def _normal(path: Path) -> str:
    import os

    return os.path.normpath(path)


def missing_images(record: Record) -> Iterator[Problem]:
    """Images of a record that are not there or are no images."""
    from PIL import Image

    for ref in record.images:
        if not isinstance(ref.source, str) or ref.source.startswith(URL_STARTS):
            continue
        try:
            with Image.open(ref.source) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            found = "no such file" if isinstance(error, FileNotFoundError) else f"{error}"
            yield Problem(ref.where, "image", f"{ref.source}: {found}", "a readable image")
