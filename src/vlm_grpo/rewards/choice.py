"""Which lettered option an answer chooses."""

from __future__ import annotations

import re
from functools import lru_cache

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
LEAD = r"(?:(?:the\s+)?(?:(?:correct|right|final|best)\s+)?(?:answer|option|choice)\s*(?:is|:)*\s*:?\s*)?"
MARKED = re.compile(
    rf"(?i:{LEAD})(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[).:,](?=\s|$)|\s+[-–—](?=\s)|$))\s*(.*)", re.DOTALL
)
BARE = re.compile(rf"(?i:({LEAD}))([A-Z])\s+(.*)", re.DOTALL)
SINGLE = re.compile(r"(?<![\w'’])[A-Z](?![\w'’])")
LABEL = re.compile(r"\s*(?:[(\[][A-Za-z][)\]]|[A-Za-z][).:])\s*")


@lru_cache(maxsize=65536)
def normalise(value: str) -> str:
    """Lower case, single spaces, no articles, no trailing punctuation."""
    return " ".join(ARTICLES.sub(" ", value.lower()).split()).rstrip(".!?,;: ")


@lru_cache(maxsize=65536)
def choice(value: str, options: tuple[str, ...] = ()) -> str | None:
    """The lower-case letter that an answer names ("(B)", "B.", "B dog", "the answer is B") or whose option it repeats.

    None when it names none, or two: a letter with another option's text, or several letters.
    """
    texts = [normalise(LABEL.sub("", option, count=1)) for option in options]
    text = value.strip().strip("*").strip()
    if normalise(text) and texts.count(normalise(text)) == 1:
        return _letter(texts.index(normalise(text)))
    if match := MARKED.fullmatch(text):
        letter, rest = match[1] or match[2], match[3]
    elif (match := BARE.fullmatch(text)) and _names_option(match, texts):
        letter, rest = match[2], match[3]
    else:
        return None
    return None if _contradicts(letter, rest, texts) else letter.lower()


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _names_option(match: re.Match[str], texts: list[str]) -> bool:
    """Whether a letter without any mark is meant as one: "B dog" where B is the dog; without options not "A dog"."""
    if texts:
        return normalise(match[3]) in texts
    return bool(match[1]) or match[2] not in "AI"


def _contradicts(letter: str, rest: str, texts: list[str]) -> bool:
    if any(other != letter.upper() for other in SINGLE.findall(rest)):
        return True
    return normalise(rest) in texts and _letter(texts.index(normalise(rest))) != letter.lower()
