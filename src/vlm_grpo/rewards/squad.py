"""SQuAD's word F1 and exact match (arXiv:1606.05250, section 6.1), for search tasks.

Unlike SQuAD's own script, numbers keep their decimal point, sign, currency and percent sign: "3.5" is not "35".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from vlm_grpo.answer_parser import encode_json, ground_truth_text, parse_answer
from vlm_grpo.records import Record

ARTICLES = frozenset(("a", "an", "the"))
SCRIPT_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff"
TOKEN = re.compile(rf"(?<![\w.])-?\d+(?:[.,:/-]\d+)*|[$€£¥%]|[{SCRIPT_WITHOUT_SPACES}]|[^\W{SCRIPT_WITHOUT_SPACES}]+")
INSIDE_WORD = re.compile(r"(?<=[^\W\d])[.'’](?=[^\W\d]|\s|$)")  # "u.s.", "don't"
THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
SINGLE_WORD_ANSWERS = frozenset(("yes", "no", "none"))  # compared as whole answers: no partial credit


@lru_cache(maxsize=65536)
def normalized_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in order: lower case, without articles, punctuation and thousands separators."""
    text = INSIDE_WORD.sub("", unicodedata.normalize("NFKC", text).replace("−", "-").lower())
    tokens = (token.replace(",", "") if THOUSANDS.fullmatch(token) else token for token in TOKEN.findall(text))
    return tuple(token for token in tokens if token not in ARTICLES)


def word_f1_reward(completion: str, record: Record) -> float | None:
    """Return the highest word F1 of the answer with any accepted answer; None without a gold answer."""
    return _best_score(_f1, completion, record)


def exact_match_reward(completion: str, record: Record) -> float | None:
    """Return 1.0 if the answer has the same words as an accepted answer, else 0.0; None without a gold answer."""
    return _best_score(lambda predicted, target: float(predicted == target), completion, record)


def _best_score(
    compare: Callable[[tuple[str, ...], tuple[str, ...]], float], completion: str, record: Record
) -> float | None:
    targets = [target for target in map(normalized_words, accepted_answers(record.answer)) if target]
    if not targets:
        return None
    predicted = normalized_words(parse_answer(completion, record.task) or "")
    return max(compare(predicted, target) for target in targets)


def accepted_answers(answer: object) -> list[str]:
    """Return the accepted answers as text: the items of a list, or the single answer."""
    if answer is None:
        return []
    items = answer if isinstance(answer, list | tuple) else [answer]
    return [ground_truth_text(item) if isinstance(item, str) else encode_json(item) for item in items]


def _f1(predicted: tuple[str, ...], target: tuple[str, ...]) -> float:
    """Return 2 * common / (predicted + target), with multiplicity; 0 if they differ and one is yes, no or none."""
    if predicted != target and any(
        len(words) == 1 and words[0] in SINGLE_WORD_ANSWERS for words in (predicted, target)
    ):
        return 0.0
    common = sum((Counter(predicted) & Counter(target)).values())
    return 2 * common / (len(predicted) + len(target))
