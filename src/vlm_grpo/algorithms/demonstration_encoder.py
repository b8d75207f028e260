"""The tokens of demonstrations, and the order in which rows with demonstrations are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_grpo.answer_parser import remaining_turn
from vlm_grpo.data.demonstrations import COLUMN, PLACES, ExpertAnswer, check_experts
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.rollouts.chat_template import ChatTemplate

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from vlm_grpo.algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class DemonstrationEncoder:
    """Encodes demonstrations as completions.

    Attributes:
        tokenizer: of the model.
        end: the token that ends a turn.
        limit: most tokens of a demonstration.
        opening: the text with which the chat template begins each turn of the assistant.
    """

    tokenizer: PreTrainedTokenizerBase
    end: int
    limit: int
    opening: str = ""

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a demonstration, with the end of the turn.

        Raises:
            ValueError: the text has special tokens, which the model would take for its markup.
        """
        ids = self.tokenizer(remaining_turn(text, self.opening), add_special_tokens=False)["input_ids"]
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        if markup := special.intersection(ids):
            raise ValueError(f"the special token {self.tokenizer.decode([min(markup)])!r}")
        return [*ids, self.end]

    def checked(self, answer: ExpertAnswer) -> list[int]:
        """Return the tokens of a demonstration that may not have been validated yet, as in a stream.

        Raises:
            DataError: it is invalid or too long; the message names its file and line.
        """
        check_experts([{COLUMN: answer.text, "where": answer.where}], self, self.limit)
        return self(answer.text)


def demonstration_encoder(
    processor: ProcessorMixin, ends: Sequence[int], limit: int, template_options: Mapping[str, object] | None = None
) -> DemonstrationEncoder:
    """Return the encoder for a tokenizer or processor.

    Args:
        processor: its chat template says how a turn ends.
        ends: tokens that end a completion; the last one that the template writes, else the tokenizer's, ends a turn.
        limit: most tokens of a demonstration.
        template_options: for every rendering.
    """
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    template = getattr(tokenizer, "chat_template", None) or getattr(processor, "chat_template", None)
    turn_ends: list[int] = []
    opening = ""
    if template:
        turns = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant")]
        renderer = ChatTemplate(
            processor if getattr(processor, "chat_template", None) else tokenizer, template_options or {}
        )
        rendered = renderer.render(turns, is_prompt=False)
        turn_ends = [number for number in tokenizer(rendered, add_special_tokens=False)["input_ids"] if number in ends]
        opening = renderer.opening(turns[:1]).from_template
    return DemonstrationEncoder(tokenizer, turn_ends[-1] if turn_ends else tokenizer.eos_token_id, limit, opening)


def validate_demonstrations(
    name: str | None,
    family: type[Algorithm],
    args: Any,
    *,
    rows: Any,
    demonstrations: Any,
    model: Any,
    processor: ProcessorMixin,
) -> None:
    """Check the demonstrations that an algorithm needs before the model is loaded; a stream's are checked as they come.

    Args:
        name: of the algorithm.
        family: its class.
        args: of the training.
        rows: of the training.
        demonstrations: rows with questions of their own, or None.
        model: as given to the trainer.
        processor: as given to the trainer.

    Raises:
        ValueError: there are rows with questions of their own that the algorithm does not take.
        DataError: a demonstration is invalid or too long, or there is none.
    """
    from datasets import IterableDataset
    from transformers import AutoTokenizer

    if demonstrations is not None and not family.takes_demonstration_rows:
        raise ValueError("demonstrations, rows with questions of their own, go with --algorithm chord alone")
    dataset = rows if demonstrations is None else demonstrations
    if not family.needs_demonstrations or dataset is None or isinstance(dataset, IterableDataset):
        return
    if processor is None:
        path = model if isinstance(model, str) else model.config._name_or_path
        processor = AutoTokenizer.from_pretrained(path, trust_remote_code=getattr(args, "trust_remote_code", False))
    limit = args.max_completion_length
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    encoder = DemonstrationEncoder(tokenizer, tokenizer.eos_token_id, limit)
    if not check_experts(demonstration_columns(dataset), encoder, limit):
        expected = f"rows with a column {COLUMN} for --algorithm {name}, or --expert_data_file_paths"
        raise DataError([Problem("the training data", COLUMN, "no row has an expert's answer", expected)])


def demonstration_columns(dataset: Dataset) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a dataset with only the columns that demonstrations need."""
    if dataset.format["type"] == "custom":
        return dataset
    if COLUMN not in dataset.column_names:
        return ()
    return dataset.select_columns([name for name in (COLUMN, PLACES, "where") if name in dataset.column_names])


class DemonstrationStream:
    """An endless order of rows that is reshuffled in every pass; `position` is the number of rows taken."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.position = 0

    def take(self, count: int) -> list[tuple[int, int]]:
        """Return the next row numbers, each with the number of its pass."""
        taken = [self._at(place) for place in range(self.position, self.position + count)]
        self.position += count
        return taken

    def _at(self, place: int) -> tuple[int, int]:
        number, inside = divmod(place, len(self.rows))
        order = np.random.default_rng([self.seed, number]).permutation(len(self.rows))
        return self.rows[order[inside]], number

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint must hold."""
        return {"position": self.position, "rows": len(self.rows), "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int], where: str) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it was written with other rows or another seed, so that the order would be another one.
        """
        now = self.state_dict()
        changed = [f"{name} {state[name]}, now {now[name]}" for name in ("rows", "seed") if state[name] != now[name]]
        if changed:
            raise ValueError(
                f"{where}: the demonstrations were drawn with {'; '.join(changed)}: resume with the original values"
            )
        self.position = state["position"]
