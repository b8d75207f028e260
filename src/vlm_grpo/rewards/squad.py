"""Rewards of search tasks: words of the answer against those of the true one (SQuAD, arXiv:1606.05250, section 6.1).

Unlike SQuAD's own script, numbers keep their decimal point, sign, currency and percent sign: "3.5" is not "35".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from vlm_grpo.answer_parser import encode_json, ground_truth_text, parse_answer
from vlm_grpo.records import Record

ARTICLES = frozenset(("a", "an", "the"))
SCRIPT_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff"
TOKEN = re.compile(rf"(?<![\w.])-?\d+(?:[.,:/-]\d+)*|[$€£¥%]|[{SCRIPT_WITHOUT_SPACES}]|[^\W{SCRIPT_WITHOUT_SPACES}]+")
INSIDE_WORD = re.compile(r"(?<=[^\W\d])[.'’](?=[^\W\d]|\s|$)")  # "u.s.", "don't"
THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
WHOLE_ANSWERS = frozenset(("yes", "no", "none"))  # a word that is the whole answer, and shares nothing with others


@lru_cache(maxsize=65536)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in order: lower case, without articles and punctuation, thousands separators removed."""
    text = INSIDE_WORD.sub("", unicodedata.normalize("NFKC", text).replace("−", "-").lower())
    tokens = (token.replace(",", "") if THOUSANDS.fullmatch(token) else token for token in TOKEN.findall(text))
    return tuple(token for token in tokens if token not in ARTICLES)


def word_f1_reward(completion: str, record: Record) -> float | None:
    """F1 of the answer's words with the true answer's, the best of several true ones; None without a true answer."""
    return _best(_f1, completion, record)


def exact_match_reward(completion: str, record: Record) -> float | None:
    """1.0 when the answer's words are a true answer's, in order, else 0.0; None without a true answer."""
    return _best(lambda given, right: float(given == right), completion, record)


def _best(
    compare: Callable[[tuple[str, ...], tuple[str, ...]], float], completion: str, record: Record
) -> float | None:
    truths = [right for right in map(words_of, accepted(record.answer)) if right]
    if not truths:
        return None
    given = words_of(parse_answer(completion, record.task) or "")
    return max(compare(given, right) for right in truths)


def accepted(answer: Any) -> list[str]:
    """The true answers as text: one, or each of a list."""
    if answer is None:
        return []
    items = answer if isinstance(answer, list | tuple) else [answer]
    return [ground_truth_text(item) if isinstance(item, str) else encode_json(item) for item in items]


def _f1(given: tuple[str, ...], right: tuple[str, ...]) -> float:
    """2 * common / (given + right), words counted as often as they stand; 0 for yes against anything else."""
    if given != right and any(len(words) == 1 and words[0] in WHOLE_ANSWERS for words in (given, right)):
        return 0.0
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))
