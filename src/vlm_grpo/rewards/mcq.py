"""Parse the letter of the option that an answer chooses."""

from __future__ import annotations

import re
from functools import lru_cache

from vlm_grpo.answer_parser import normalize_nfkc, python_literal, strip_end_punctuation

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Scripts in which a word may follow a letter without a space: Kana, Han, Hangul.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
LEAD = (
    r"(?:(?:the\s+)?(?:(?:correct|right|final|best)\s+)?(?:answer|option|choice)\s*(?:is|:)*\s*:?\s*"
    r"|(?:所以|因此|故)?(?:正确|最终|最佳)?(?:答案|选项)(?:应该|应)?(?:是|为|选)?\s*:?\s*"  # the answer is
    r"|(?:所以|因此|故|应|应该)?选择?\s*:?\s*)?"  # choose
)
MARKED = re.compile(
    rf"(?i:{LEAD})(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[).:,](?=\s|$|[{UNSPACED}])|[、。;]|\s+[-–—](?=\s)|$))\s*(.*)",
    re.DOTALL,
)
BARE = re.compile(rf"(?i:({LEAD}))([A-Z])(\s+|(?=[{UNSPACED}]))(.*)", re.DOTALL)
AFFIRMED = re.compile(r"[项項]?(?:是|为)?(?:正确|正確|对)的?(?:答案|选项)?")  # is right
SINGLE_CAPITAL = re.compile(r"[A-Z]")
SEVERAL = re.compile(rf"(?i:{LEAD})([(\[]?[A-Z][)\]]?(?:\s*(?:[,;、/&+]|and|和)?\s*[(\[]?[A-Z][)\]]?)+)")
SINGLE = re.compile(rf"(?<![^\W{UNSPACED}])(?<!['’])[A-Z](?![^\W{UNSPACED}])(?!['’])")
LABEL = re.compile(r"\s*(?:[(\[][A-Za-z][)\]]|[A-Za-z][).:])\s*")


@lru_cache(maxsize=65536)
def normalize_text(value: str) -> str:
    """Return the text in lower case and NFKC, with single spaces, without articles and trailing punctuation."""
    return strip_end_punctuation(" ".join(ARTICLES.sub(" ", normalize_nfkc(value).lower()).split()))


@lru_cache(maxsize=65536)
def parse_choice(value: str, options: tuple[str, ...] = ()) -> str | None:
    """Return the lower-case letter of an answer ("(B)", "B.", "B dog", "the answer is B") or of the option it repeats.

    None if it names no option or more than one: several letters, or a letter with the text of another option.
    """
    texts = [normalize_text(LABEL.sub("", option, count=1)) for option in options]
    text = strip_end_punctuation(normalize_nfkc(value).strip().strip("*").strip())
    if normalize_text(text) and texts.count(normalize_text(text)) == 1:
        return _letter(texts.index(normalize_text(text)))
    if match := MARKED.fullmatch(text):
        letter, rest = match[1] or match[2], match[3]
    elif (match := BARE.fullmatch(text)) and _names_option(match, texts):
        letter, rest = match[2], match[4]
    else:
        return None
    return None if _contradicts(letter, rest, texts) else letter.lower()


@lru_cache(maxsize=65536)
def parse_choices(value: str, options: tuple[str, ...] = ()) -> frozenset[str] | None:
    """Return the lower-case letters of an answer: one as in `parse_choice`, or several, "AC", "A, C", "(A) and (C)".

    None if it names no option, one option twice, or a letter without an option. Several letters must be upper case.
    """
    single = parse_choice(value, options)
    if single is not None:
        return frozenset(single)
    named = python_literal(value)
    if isinstance(named, list):
        choices = [parse_choice(item, options) if isinstance(item, str) else None for item in named]
        letters = [letter for letter in choices if letter is not None]
        if len(letters) < len(choices):
            return None
    else:
        letters = _parse_several(normalize_nfkc(value))
    if not letters or len(set(letters)) < len(letters):
        return None
    last = _letter(len(options) - 1) if options else "z"
    return frozenset(letters) if max(letters) <= last else None


def _parse_several(text: str) -> list[str]:
    match = SEVERAL.fullmatch(strip_end_punctuation(text.strip()))
    return [letter.lower() for letter in SINGLE_CAPITAL.findall(match[1])] if match else []


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _names_option(match: re.Match[str], texts: list[str]) -> bool:
    """Return whether a bare letter is a choice: "B dog" is if B is the dog; "A dog" is not without options."""
    if AFFIRMED.fullmatch(match[4]):
        return True
    if texts or not match[3]:
        return normalize_text(match[4]) in texts
    return bool(match[1]) or match[2] not in "AI"


def _contradicts(letter: str, rest: str, texts: list[str]) -> bool:
    if any(other != letter.upper() for other in SINGLE.findall(rest)):
        return True
    return normalize_text(rest) in texts and _letter(texts.index(normalize_text(rest))) != letter.lower()
