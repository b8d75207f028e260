"""How far two backends agree: completions of the same rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_grpo.evaluation.predictions import Backend
from vlm_grpo.records import Row
from vlm_grpo.rollouts.chat_template import common_length


@dataclass(frozen=True)
class Agreement:
    """Completions of two backends for the same rows.

    Attributes:
        rows: that were compared.
        equal: rows whose completions are the same.
        prefix: mean fraction of the longer completion that both begin with.
        first_difference: row number and both completions of the first row that differs; None where all are the same.
    """

    rows: int
    equal: int
    prefix: float
    first_difference: tuple[int, str, str] | None

    def lines(self, backend: str) -> list[str]:
        """Return the agreement as text."""
        lines = [
            f"agreement of {backend} with transformers on {self.rows} rows: {self.equal} equal completions, "
            f"{100 * self.prefix:.1f} % of the text in common up to the first difference"
        ]
        if self.first_difference is not None:
            row, ours, theirs = self.first_difference
            lines.append(f"row {row}: {backend} {ours!r:.200}\nrow {row}: transformers {theirs!r:.200}")
        return lines


def compare_backends(backend: Backend, reference: Backend, dataset: Sequence[Row], numbers: Sequence[int]) -> Agreement:
    """Complete the rows with both backends, and return how far they agree.

    Raises:
        ValueError: there are no rows.
    """
    if not numbers:
        raise ValueError("there are no rows to compare two backends on")
    ours, theirs = (_texts(each, dataset, numbers) for each in (backend, reference))
    pairs = [(number, ours[number], theirs[number]) for number in numbers]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    prefixes = [common_length(one, other) / max(len(one), len(other), 1) for _, one, other in pairs]
    prefixes = [1.0 if one == other else prefix for (_, one, other), prefix in zip(pairs, prefixes, strict=True)]
    return Agreement(
        len(pairs), len(pairs) - len(different), sum(prefixes) / len(pairs), different[0] if different else None
    )


def _texts(backend: Backend, dataset: Sequence[Row], numbers: Sequence[int]) -> dict[int, str]:
    return {each.number: each.completions[0].text for batch in backend(dataset, numbers) for each in batch}
