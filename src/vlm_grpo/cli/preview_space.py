"""Gold boxes of `vlm-grpo preview` in the coordinate space of the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vlm_grpo.records import Row

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def box_converter(model: str | None, flag: str | None) -> Callable[[Row], Row]:
    """Return a function that converts a row's gold box to the space of --answer_space or of the model family.

    If neither is known, rows are unchanged.

    Raises:
        ValueError: the space is `resized` and there is no model, or its processor has no known resize rule.
    """
    if model is None:
        if flag == "resized":
            raise ValueError("--answer_space resized needs --model_name_or_path: the size depends on the model")
        return (lambda row: row) if flag is None else (lambda row: place_box(row, flag, [None] * len(row["images"])))
    from transformers import AutoConfig, AutoProcessor

    from vlm_grpo.answer_space import answer_space, check_answer_space

    processor, model_type = AutoProcessor.from_pretrained(model), AutoConfig.from_pretrained(model).model_type
    check_answer_space(flag, processor)
    space = answer_space(model_type, flag)
    notice = _Notice(model_type, flag)

    def convert(row: Row) -> Row:
        notice(row["task"])
        return place_box(
            row, space, _processed_sizes(row, processor) if space == "resized" else [None] * len(row["images"])
        )

    return convert


class _Notice:
    """Prints the assumed coordinate space once, if it is unknown for the model and a task has boxes."""

    def __init__(self, model_type: str, flag: str | None) -> None:
        from vlm_grpo.answer_space import space_notice

        self.line = space_notice(model_type, flag)

    def __call__(self, task: str) -> None:
        from vlm_grpo.evaluation.backends.openai import needs_space

        if self.line and needs_space(task):
            print(f"vlm-grpo preview: {self.line}", file=sys.stderr)
            self.line = None


def _processed_sizes(row: Row, processor: ProcessorMixin) -> list[tuple[int, int] | None]:
    from vlm_grpo.rollouts.encoder import PromptEncoder

    encoder = PromptEncoder(processor, {})
    return encoder.processed_sizes(encoder.encode([row])[0])


def place_box(row: Row, space: str, resized: list[tuple[int, int] | None]) -> Row:
    """Return the row with the single gold box of its record converted to a space; other rows are unchanged."""
    from vlm_grpo.data.images import image_size
    from vlm_grpo.rewards.adapter import with_facts
    from vlm_grpo.rewards.iou import in_answer_space, target_box

    record = row["record"]
    box = target_box(record.answer) if row["task"] in ("rec", "grounding") and row["images"] else None
    if box is None:
        return row
    sizes = [image_size(ref) for ref in row["images"]]
    facts = {"answer_space": space, "image_sizes": sizes, "processed_sizes": resized}
    coordinates = [round(number, 6) for number in in_answer_space(box, with_facts(record, facts))]
    answer = [int(number) if number == int(number) else number for number in coordinates]
    return {**row, "record": replace(with_facts(record, {"box_space": space}), answer=answer)}
