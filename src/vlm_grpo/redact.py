"""Redact passwords and keys in run records, logs, warnings, errors and commands.

A secret is recognized by its position: in a URL, after a flag or under the name of a secret. Nothing is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "[hidden]"
NAME = (
    r"(?:[\w.-]*[_.-])?(?:passwords?|passwd|pwd|secrets?|credentials?|api[_-]?keys?|(?:access|private|secret)[_-]?keys?)"
    r"|(?:[\w.-]*[_.-])?(?:hub|hf|auth|access|api|bearer|refresh|session|security|wandb|github|secret)[_-]?tokens?|token"
    r"|authorization|x-api-key"
)
SECRET_NAME = re.compile(rf"(?:{NAME})", re.IGNORECASE)
PARAMETER = rf"{NAME}|key|sig|auth|[\w.-]*signature"
# A URL may be part of a sentence, so its user part ends at the last @ before a slash, a quote or a space.
USER = re.compile(r"""(?<=://)[^\s/?#"'<>]*@""")
QUERY = re.compile(rf"""([?&;#](?:{PARAMETER})=)[^\s&;#"'<>]+""", re.IGNORECASE)
BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
# In a sentence such as `--hub_token has no effect`, the next word is not a value: values contain a digit.
FLAG = re.compile(rf"(--(?:{NAME}))(=\S+|\s+(?!--)(?=\S*\d)\S+)", re.IGNORECASE)
KNOWN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16})\b")


def is_secret_name(name: str) -> bool:
    """Return whether a value of this name is a secret: `hub_token` is one, `max_tokens` or `pad_token` is not."""
    return SECRET_NAME.fullmatch(name.lstrip("-")) is not None


def redact_text(text: str) -> str:
    """Return the text with `[hidden]` for passwords and keys in URLs, after flags, and for known kinds of tokens."""
    text = USER.sub(f"{HIDDEN}@", text)
    text = QUERY.sub(rf"\g<1>{HIDDEN}", text)
    text = FLAG.sub(lambda found: f"{found[1]}{found[2][0]}{HIDDEN}", text)
    return KNOWN.sub(HIDDEN, BEARER.sub(rf"\g<1>{HIDDEN}", text))


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split a URL into the URL without user and password, and these (None if it has none).

    Libraries log the URLs that they request.
    """
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return plain, (unquote(parts.username), unquote(parts.password or ""))


def redact(value: object) -> Any:
    """Return a value that is safe to store: secrets in its texts and under its names are `[hidden]`.

    Mappings, lists and tuples are copied; values of other types are unchanged. A name whose value
    is None or empty keeps it, to show that no secret is set.
    """
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {name: _redact_item(name, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [redact(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _redact_item(name: object, item: object) -> object:
    if isinstance(name, str) and is_secret_name(name) and item not in (None, "") and not isinstance(item, bool):
        return HIDDEN
    return redact(item)


def redact_command(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `[hidden]` for the value of each secret flag."""
    redacted: list[str] = []
    hides_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_flag = word.startswith("--")
        if hides_next and not is_flag:
            redacted.append(HIDDEN)
        elif is_flag and equals and is_secret_name(name):
            redacted.append(f"{name}={HIDDEN}")
        else:
            redacted.append(redact_text(word))
        hides_next = is_flag and not equals and is_secret_name(name)
    return redacted
