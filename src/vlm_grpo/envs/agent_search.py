"""Environment `agent_search`: the model searches for what the image lacks, as in MAT-Search (arXiv:2505.14246)."""

from __future__ import annotations

import re
from collections.abc import Callable

from vlm_grpo.envs.environment import Environment, ToolError
from vlm_grpo.envs.retrieval.bm25 import SHORTEST, SearchIndex, SearchResult, open_index
from vlm_grpo.envs.web_search import ProviderSettings, WebSearch, truncate, web_search
from vlm_grpo.records import Record
from vlm_grpo.registry import Registry
from vlm_grpo.rewards.accuracy import accuracy_reward
from vlm_grpo.rewards.adapter import record_of_row
from vlm_grpo.rewards.squad import exact_match_reward, word_f1_reward

CORRECT_ABOVE = 0.5  # an answer with a higher score is correct
MAX_TITLE_LENGTH = 200  # characters of a title or an id
SPECIAL_TOKEN = re.compile(r"<\|")  # prefix of special tokens: a document must not end the turn or add an image
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
SCORES: Registry[Callable[[str, Record], float | None]] = Registry(
    "score", {"word_f1": word_f1_reward, "exact_match": exact_match_reward, "accuracy": accuracy_reward}
)


class AgentSearch(Environment):
    """A question about images whose answer requires a search.

    Args:
        index: file written by `vlm-grpo index`; without it, the web is searched.
        provider: serper, tavily, brave, searxng or json, with SEARCH_API_KEY and SEARCH_BASE_URL in the environment;
            default: SEARCH_PROVIDER.
        top: number of passages that a search returns.
        max_searches: maximum number of searches per episode; failed ones are not counted.
        passage_characters: maximum length of a passage.
        score: score of the final answer: word_f1, exact_match or accuracy.
        tool_bonus: bonus for a successful search, given only with a correct final answer, so that searches are not run
            for the bonus alone.
        timeout: time limit of a request to a provider in seconds.
        retries: number of retries after a failed request.
        rate: maximum number of requests per second, over all episodes.

    Raises:
        KeyError: the provider or score is unknown.
        ValueError: an option is out of range, or neither index nor provider is set.
        OSError: the index cannot be read.
    """

    def __init__(
        self,
        *,
        index: str | None = None,
        provider: str | None = None,
        top: int = 3,
        max_searches: int = 4,
        passage_characters: int = 500,
        score: str = "word_f1",
        tool_bonus: float = 0.2,
        timeout: float = 10.0,
        retries: int = 2,
        rate: float = 5.0,
    ) -> None:
        _check(index, provider, top=top, max_searches=max_searches, passage_characters=passage_characters)
        self.top, self.max_searches, self.passage_characters = top, max_searches, passage_characters
        self.score, self.tool_bonus = SCORES[score], tool_bonus
        self.source: SearchIndex | WebSearch = (
            open_index(index) if index else web_search(_settings(provider, timeout, retries, rate))
        )
        self.reset(answer=" ")

    def reset(self, **row: object) -> str:
        """Start with the question of a row.

        Raises:
            ValueError: the row has no gold answer.
        """
        self.record = record_of_row(row)
        if self.record.answer in (None, "", []):
            raise ValueError(
                f"{self.record.where or 'row'}: agent_search needs a gold answer, got {row.get('answer')!r}"
            )
        self.searches = self.found = self.failed_searches = 0
        self.text = ""
        return ""

    def search(self, query: str) -> str:
        """Look something up. Gives the passages that fit best, each with its title and its source.

        Args:
            query: What to look for, in a few words.
        """
        try:
            results = self._results(query)
        except ToolError:
            self.failed_searches += 1
            raise
        self.searches += 1
        self.found += bool(results)
        return (
            "\n\n".join(map(_format_result, range(1, len(results) + 1), results))
            or "Nothing was found; try other words."
        )

    def _results(self, query: object) -> list[SearchResult]:
        if self.searches >= self.max_searches:
            raise ToolError(f"no more than {self.max_searches} searches; answer now")
        if not isinstance(query, str) or not query.strip():
            raise ToolError(f"query must be a few words, got {query!r:.100}")
        return self.source.search(query, self.top, self.passage_characters)

    def finish(self, text: str) -> None:
        """Store the last turn."""
        self.text = text

    def get_reward(self) -> float:
        """Return the score of the final answer, plus the bonus for a successful search if it is correct."""
        score = self._score()
        return score + self.tool_bonus * (score > CORRECT_ABOVE and self.found > 0)

    def metrics(self) -> dict[str, float]:
        """Return the number of searches, of failed searches, and success."""
        return {
            "searches": float(self.searches),
            "failed": float(self.failed_searches),
            "success": float(self._score() > CORRECT_ABOVE),
        }

    def _score(self) -> float:
        return self.score(self.text, self.record) or 0.0


def _check(index: str | None, provider: str | None, **counts: int) -> None:
    """Validate the options.

    Raises:
        ValueError: an option is invalid; the message names it.
    """
    if index and provider:
        raise ValueError("agent_search: set either index, for your own documents, or provider, for the web")
    for name, value in counts.items():
        least = SHORTEST if name == "passage_characters" else 1
        if value < least:
            raise ValueError(f"agent_search: {name} must be at least {least}, got {value!r}")


def _settings(provider: str | None, timeout: float, retries: int, rate: float) -> ProviderSettings:
    try:
        return ProviderSettings(provider, timeout=timeout, retries=retries, rate=rate).complete()
    except ValueError as error:
        raise ValueError(f"agent_search: without the option index, the web is searched, but {error}") from error


def _format_result(number: int, result: SearchResult) -> str:
    """Return a result as text for the model."""
    title, source = truncate(result.title, MAX_TITLE_LENGTH), truncate(result.id, MAX_TITLE_LENGTH)
    text = f"[{number}] {title} ({source})\n{result.passage}"
    return SPECIAL_TOKEN.sub("< |", UNPRINTABLE.sub(" ", text))
