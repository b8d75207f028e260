"""Predictions: question, completion, parsed answer and scores of each row, ready for JSON. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from vlm_grpo.evaluation.aggregate import collect_evidence, evidence_names, load_scorer, reward_names
from vlm_grpo.evaluation.fingerprint import record_digest
from vlm_grpo.evaluation.sampling_params import pass_at_k
from vlm_grpo.records import JsonObject, Message, Prediction, Record, Row
from vlm_grpo.rewards.accuracy import predicted_answer
from vlm_grpo.rewards.adapter import record_of_row, with_facts

NO_GROUP = "(none)"
EPISODE_REWARDS = ("word_f1", "exact_match")  # rewards that every episode with a gold answer is scored with
SUCCESS = "success"  # the metric of an environment for a solved episode
OVERLAY_COLUMNS = ("box_space", "box_image", "mask", "terms")


class EpisodeError(ValueError):
    """The episode of a row cannot be run; earlier predictions are kept."""


class EpisodeResult(NamedTuple):
    """An episode: its metrics (turns, calls, reward, the environment's own) and its turns, as JSON values."""

    numbers: Mapping[str, float]
    trajectory: Sequence[Message]


class ScoredText(NamedTuple):
    """A completion to score: the assistant's turn, its generated tokens (None: unknown), whether it was truncated.

    `text` starts with the part of the turn that is in the prompt (`turn_opening` of the facts); its only special tokens
    are delimiters of thoughts, boxes and calls. For an episode, it is the last turn. `facts` are columns for rewards.
    """

    text: str
    num_tokens: int | None
    is_truncated: bool
    facts: Mapping[str, object] = MappingProxyType({})
    episode: EpisodeResult | None = None


class RowCompletions(NamedTuple):
    """A row's number, the row, and its completions."""

    number: int
    row: Row
    completions: list[ScoredText]


class Backend(Protocol):
    """The interface of backends: yields completed rows, some at a time, in any order."""

    def __call__(self, dataset: Sequence[Row], numbers: Sequence[int]) -> Iterator[list[RowCompletions]]: ...


@dataclass
class Scoring:
    """Scores the predictions of a task. Resources of its rewards are loaded on creation.

    Args:
        pass_k: the k of each pass@k, which is added to the scores.
        group_by: the column with the group of each example.
        of_episodes: completions are episodes: their metrics are scores too, and pass@k counts solved ones.
        has_answers: score with the task's rewards too; episodes without data have no gold answers.

    Raises:
        KeyError: an unknown task.
        ImportError: a package of an extra is missing.
    """

    task: str
    reward_options: Mapping[str, object] | None = None
    pass_k: Sequence[int] = ()
    group_by: str | None = None
    of_episodes: bool = False
    has_answers: bool = True
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        rewards = reward_names(self.task) if self.has_answers else []
        self.names = list(dict.fromkeys([*EPISODE_REWARDS, *rewards])) if self.of_episodes else rewards
        self.evidence = evidence_names(self.task) if self.has_answers else []
        self.judged = SUCCESS if self.of_episodes else self.names[0]
        self.scorer = load_scorer(self.names, self.reward_options)

    def predictions(self, rows: Sequence[RowCompletions]) -> list[Prediction]:
        """Return one prediction per row; the completions of all rows are scored together."""
        records = [with_facts(record_of_row(entry.row), entry.completions[0].facts) for entry in rows]
        flat = [
            (completion.text, with_facts(record, completion.facts))
            for entry, record in zip(rows, records, strict=True)
            for completion in entry.completions
        ]
        scores = iter(self.scorer([text for text, _ in flat], [record for _, record in flat]))
        return [
            self._prediction(entry, record, [next(scores) for _ in entry.completions])
            for entry, record in zip(rows, records, strict=True)
        ]

    def _prediction(self, entry: RowCompletions, record: Record, scores: list[dict[str, float | None]]) -> JsonObject:
        scores = [
            _merge_episode_metrics(row, completion.episode)
            for row, completion in zip(scores, entry.completions, strict=True)
        ]
        samples = [
            {
                "predicted": predicted_answer(completion.text, record),
                "scores": row,
                "completion": completion.text,
                "num_tokens": completion.num_tokens,
                "is_truncated": completion.is_truncated,
                **_episode(completion.episode),
            }
            for completion, row in zip(entry.completions, scores, strict=True)
        ]
        collected = [collect_evidence(self.evidence, completion.text, record) for completion in entry.completions]
        return {
            "row": entry.number,
            "data": record_digest(record_of_row(entry.row)),
            "id": record.id,
            "question": record.question,
            "images": [ref.source if isinstance(ref.source, str) else None for ref in record.images],
            "answer": record.answer,
            **samples[0],
            "scores": self._scores(scores),
            **(
                {"evidence": {name: [part[name] for part in collected] for name in self.evidence}}
                if self.evidence
                else {}
            ),
            **({"group": group_of(record, self.group_by)} if self.group_by else {}),
            **({"samples": samples} if len(samples) > 1 else {}),
            "facts": {**_to_json_facts(entry.completions[0].facts), **_columns(record)},
        }

    def _scores(self, scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
        """Return the mean of each score over the completions it applies to, and pass@k of the success metric."""
        columns = {name: [row.get(name) for row in scores] for name in dict.fromkeys(n for row in scores for n in row)}
        values_of = {name: [value for value in column if value is not None] for name, column in columns.items()}
        means = {name: _mean(column) for name, column in values_of.items()}
        success_values = values_of.get(self.judged, [])
        num_correct = sum(value >= 1 for value in success_values)
        passes = {
            f"pass@{k}": pass_at_k(len(success_values), num_correct, k) if len(success_values) >= k else None
            for k in self.pass_k
        }
        return {**means, **passes}


def group_of(record: Record, name: str) -> str:
    """Return the value of a record's column as text."""
    value = record.extra.get(name, getattr(record, name, None) if name in ("task", "method") else None)
    return NO_GROUP if value is None else str(value)


def check_group(rows: Sequence[Row], name: str) -> None:
    """Check that some row has a column.

    Raises:
        ValueError: no row has it; the message lists the available columns.
    """
    columns: dict[str, None] = {}
    for row in rows:
        if group_of(record_of_row(row), name) != NO_GROUP:
            return
        columns |= dict.fromkeys(map(str, record_of_row(row).extra))
    raise ValueError(
        f"--group_by {name}: no row has this column; available are {', '.join([*columns, 'task', 'method'])}"
    )


def _merge_episode_metrics(
    scores: Mapping[str, float | None], episode: EpisodeResult | None
) -> dict[str, float | None]:
    """Return an episode's scores: success and reward first, other metrics last."""
    if episode is None:
        return dict(scores)
    first = {name: episode.numbers[name] for name in (SUCCESS, "reward") if name in episode.numbers}
    return {**first, **scores, **{name: value for name, value in episode.numbers.items() if name not in scores}}


def _episode(episode: EpisodeResult | None) -> JsonObject:
    return {} if episode is None else {"episode": dict(episode.numbers), "trajectory": list(episode.trajectory)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _to_json_facts(facts: Mapping[str, Any]) -> JsonObject:
    """Return the facts with sizes as lists, as after a round trip through JSON."""
    sizes = ("image_sizes", "processed_sizes")
    return {
        name: [list(size) if size else None for size in value] if name in sizes else value
        for name, value in facts.items()
        if name != "turn_opening" or value
    }


def _columns(record: Record) -> JsonObject:
    """Return the columns of the target box or mask, so that a report can be rendered without the data."""
    return {name: record.extra[name] for name in OVERLAY_COLUMNS if record.extra.get(name) is not None}
