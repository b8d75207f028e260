"""From an expert's answers to tokens, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import IterableDataset
from transformers import AutoTokenizer

from vlm_grpo.answer_parser import remaining_turn
from vlm_grpo.data.demonstrations import COLUMN, PLACES, ExpertAnswer, check_experts
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.rollouts.chat_template import ChatTemplate


@dataclass(frozen=True)
class DemonstrationEncoder:
    """The tokens of an answer after `opening`, with `end`, the token that ends a turn; at most `limit` of them."""

    tokenizer: Any
    end: int
    limit: int
    opening: str = ""  # what the chat template writes of each answer

    def __call__(self, text: str) -> list[int]:
        """Raises ValueError for a text that holds special tokens: the model would take them for its markup."""
        ids = self.tokenizer(remaining_turn(text, self.opening), add_special_tokens=False)["input_ids"]
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        found = special.intersection(ids)
        if found:
            raise ValueError(f"the special token {self.tokenizer.decode([min(found)])!r}")
        return [*ids, self.end]

    def checked(self, answer: ExpertAnswer) -> list[int]:
        """The same; a DataError names the place of a wrong or too long one, which a stream meets as it goes."""
        check_experts([{COLUMN: answer.text, "where": answer.where}], self, self.limit)
        return self(answer.text)


def demonstration_encoder(
    processor: Any, ends: Sequence[int], limit: int, template_options: Mapping[str, Any] | None = None
) -> DemonstrationEncoder:
    """The encoder for a tokenizer or processor.

    Args:
        processor: whose chat template says how a turn ends.
        ends: tokens that end a completion; the template's last one of these, else the tokenizer's, ends an answer.
        limit: most tokens of an answer.
        template_options: of every rendering.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(tokenizer, "chat_template", None) or getattr(processor, "chat_template", None)
    found: list[int] = []
    opening = ""
    if template:
        turns = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant")]
        renderer = ChatTemplate(
            processor if getattr(processor, "chat_template", None) else tokenizer, template_options or {}
        )
        rendered = renderer.render(turns, is_prompt=False)
        found = [number for number in tokenizer(rendered, add_special_tokens=False)["input_ids"] if number in ends]
        opening = renderer.opening(turns[:1]).from_template
    return DemonstrationEncoder(tokenizer, found[-1] if found else tokenizer.eos_token_id, limit, opening)


def check_answers(name: str, dataset: Any, model: Any, processor: Any, args: Any) -> None:
    """Look at the answers of all training rows before the model is loaded; a stream's are looked at as it goes.

    Raises:
        DataError: one is wrong or too long, or there is none.
    """
    if dataset is None or isinstance(dataset, IterableDataset):
        return
    if processor is None:
        path = model if isinstance(model, str) else model.config._name_or_path
        processor = AutoTokenizer.from_pretrained(path, trust_remote_code=getattr(args, "trust_remote_code", False))
    limit = args.max_completion_length
    tokenizer = getattr(processor, "tokenizer", processor)
    encoder = DemonstrationEncoder(tokenizer, tokenizer.eos_token_id, limit)
    if not check_experts(answer_columns(dataset), encoder, limit):
        expected = f"rows with a column {COLUMN} for --algorithm {name}, or --expert_data_file_paths"
        raise DataError([Problem("the training data", COLUMN, "no row has an expert's answer", expected)])


def answer_columns(dataset: Any) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set, with as few columns as are needed for the expert's answers."""
    if dataset.format["type"] == "custom":
        return dataset
    if COLUMN not in dataset.column_names:
        return ()
    return dataset.select_columns([name for name in (COLUMN, PLACES, "where") if name in dataset.column_names])


class DemonstrationStream:
    """An endless order of rows, each pass over them shuffled anew; `position` rows have been taken."""

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.position = 0

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next row numbers, each with the number of its pass."""
        taken = [self._at(place) for place in range(self.position, self.position + count)]
        self.position += count
        return taken

    def _at(self, place: int) -> tuple[int, int]:
        number, inside = divmod(place, len(self.rows))
        order = np.random.default_rng([self.seed, number]).permutation(len(self.rows))
        return self.rows[order[inside]], number

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"position": self.position, "rows": len(self.rows), "seed": self.seed}

    def restore(self, state: Mapping[str, int], where: str) -> None:
        """Go on where a checkpoint was written.

        Raises:
            ValueError: it was written with other rows or another seed, so that the order would not go on.
        """
        now = self.state()
        changed = [f"{name} {state[name]}, now {now[name]}" for name in ("rows", "seed") if state[name] != now[name]]
        if changed:
            raise ValueError(
                f"{where}: the expert's answers were drawn with {'; '.join(changed)}: resume with the former"
            )
        self.position = state["position"]
