"""`DEBUG_MODE=true LOG_PATH=logs/debug.txt`: one JSON line for each completion and reward.

Each reward and task has a file of its own, and so has every process but the first: `logs/debug_accuracy_vqa.txt`,
`logs/debug_accuracy_vqa_rank1.txt`. Images appear by their paths.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_grpo.answer_parser import completion_text
from vlm_grpo.records import ImageRef, Row
from vlm_grpo.rewards.accuracy import predicted_answer
from vlm_grpo.rewards.adapter import record_of_row


class DebugLog:
    """Appends to the files of one process.

    Raises:
        ValueError: the folder of the path cannot be written to.
    """

    def __init__(self, path: str, rank: int) -> None:
        self.path = Path(path)
        self.rank = rank
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"LOG_PATH={path}: the folder cannot be created: {error.strerror}") from error
        if not os.access(self.path.parent, os.W_OK):
            raise ValueError(f"LOG_PATH={path}: the folder cannot be written to")

    def path_of(self, reward: str, task: str) -> Path:
        """Return the file of one reward on one task."""
        rank = f"_rank{self.rank}" if self.rank else ""
        return self.path.with_name(f"{self.path.stem}_{reward}_{task}{rank}{self.path.suffix}")

    def write(
        self,
        step: int,
        rows: Sequence[Row],
        completions: Sequence[Any],
        values: Mapping[str, list[float]],
    ) -> None:
        """Write a line for every row and reward; `values` has one number per row, NaN where a reward does not apply."""
        lines: dict[Path, list[str]] = {}
        for number, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            record, text = record_of_row(row), completion_text(completion)
            entry = {
                "step": step,
                "rank": self.rank,
                "id": record.id,
                "where": record.where,
                "images": [_name(image) for image in row.get("images") or []],
                "completion": text,
                "answer": predicted_answer(text, record),
                "truth": record.answer,
            }
            for reward, scores in values.items():
                value = None if math.isnan(scores[number]) else scores[number]
                line = json.dumps({**entry, "reward": reward, "value": value}, ensure_ascii=False, default=str)
                lines.setdefault(self.path_of(reward, record.task), []).append(line + "\n")
        for path, content in lines.items():
            with path.open("a", encoding="utf-8") as file:
                file.writelines(content)


def _name(image: object) -> str:
    source = image.source if isinstance(image, ImageRef) else image
    return source if isinstance(source, str) else type(source).__name__


def debug_log(environment: Mapping[str, str], rank: int) -> DebugLog | None:
    """Return the log that DEBUG_MODE and LOG_PATH configure; None without DEBUG_MODE=true.

    Raises:
        ValueError: DEBUG_MODE=true without a LOG_PATH, or one that cannot be written to.
    """
    if environment.get("DEBUG_MODE", "").lower() not in ("true", "1"):
        return None
    if not environment.get("LOG_PATH"):
        raise ValueError("DEBUG_MODE=true needs LOG_PATH=path/to/log.txt, where the lines go")
    return DebugLog(environment["LOG_PATH"], rank)
