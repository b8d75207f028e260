"""The true boxes of `vlm-grpo preview`, as the model writes them: in its own coordinate space."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

Row = Mapping[str, Any]


def row_placer(model: str | None, chosen: str | None) -> Callable[[Row], Row]:
    """Return what puts a row's true box into the space of --answer_space, or else of the model's family.

    Without either, rows stay as they are.

    Raises:
        ValueError: `resized`, and there is no model, or it does not tell the size that it resizes to.
    """
    if model is None:
        if chosen == "resized":
            raise ValueError("--answer_space resized needs --model_name_or_path: each model resizes in its own way")
        return (lambda row: row) if chosen is None else (lambda row: placed(row, chosen, [None] * len(row["images"])))
    from transformers import AutoConfig, AutoProcessor

    from vlm_grpo.answer_space import answer_space, check_answer_space

    processor, model_type = AutoProcessor.from_pretrained(model), AutoConfig.from_pretrained(model).model_type
    check_answer_space(chosen, processor)
    space = answer_space(model_type, chosen)
    tell = _Notice(model_type, chosen)

    def place(row: Row) -> Row:
        tell(row["task"])
        return placed(
            row, space, _processed_sizes(row, processor) if space == "resized" else [None] * len(row["images"])
        )

    return place


class _Notice:
    """Prints once in which space boxes are read, where it is a guess and a task has boxes."""

    def __init__(self, model_type: str, chosen: str | None) -> None:
        from vlm_grpo.answer_space import space_notice

        self.line = space_notice(model_type, chosen)

    def __call__(self, task: str) -> None:
        from vlm_grpo.evaluation.server import needs_space

        if self.line and needs_space(task):
            print(f"vlm-grpo preview: {self.line}", file=sys.stderr)
            self.line = None


def _processed_sizes(row: Row, processor: Any) -> list[tuple[int, int] | None]:
    from vlm_grpo.rollouts.encoder import PromptEncoder

    encoder = PromptEncoder(processor, {})
    return encoder.processed_sizes(encoder.encode([row])[0])


def placed(row: Row, space: str, resized: list[tuple[int, int] | None]) -> Row:
    """The row with the one true box of its record in a space; any other row as it is."""
    from vlm_grpo.data.images import image_size
    from vlm_grpo.rewards.adapter import with_facts
    from vlm_grpo.rewards.box import in_answer_space, true_box

    record = row["record"]
    box = true_box(record.answer) if row["task"] in ("rec", "grounding") and row["images"] else None
    if box is None:
        return row
    sizes = [image_size(ref) for ref in row["images"]]
    facts = {"answer_space": space, "image_sizes": sizes, "processed_sizes": resized}
    there = [round(number, 6) for number in in_answer_space(box, with_facts(record, facts))]
    answer = [int(number) if number == int(number) else number for number in there]
    return {**row, "record": replace(with_facts(record, {"box_space": space}), answer=answer)}
