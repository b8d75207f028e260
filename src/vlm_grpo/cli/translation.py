"""Translate command lines and nested YAML files of other systems with the tables of migration.py."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from vlm_grpo.cli.args import FlagValues
from vlm_grpo.cli.migration import SECTIONS, VALUES, Change, change_of_flag, change_of_key

ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]+)(?:,([^}]*))?\}")


@dataclass
class Translation:
    """The translated command line, its problems, and notes on what was translated."""

    words: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translate(argv: list[str], known: Collection[str]) -> Translation:
    """Translate flags and `key=value` words of other systems in a command line.

    Args:
        known: flags of this package, of which only the values in VALUES are translated.
    """
    translation = Translation()
    for flag, values in _groups(argv):
        keys = [word for word in values if _is_key(word)]
        plain_values = [word for word in values if not _is_key(word)]
        if flag is None:
            translation.words += plain_values
        else:
            _flag(flag, plain_values, known, translation)
        _keys(dict(word.split("=", 1) for word in keys), translation)
    return translation


def nested(config: FlagValues) -> FlagValues:
    """Return the keys of another system's nested YAML file in dotted form, without this package's flags."""
    sections = {name: value for name, value in config.items() if name in SECTIONS and isinstance(value, Mapping)}
    sections |= {name: value for name, value in config.items() if name in ("ref", "critic", "mix_sampler")}
    return dict(_flat(sections, ""))


def translate_keys(keys: FlagValues) -> Translation:
    """Translate dotted keys with their values; null values are skipped."""
    translation = Translation()
    _keys({key: value for key, value in keys.items() if value is not None}, translation)
    return translation


def _groups(argv: list[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yield each flag with the words that follow it; the flag of words before the first one is None."""
    flag: str | None = None
    values: list[str] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            yield flag, values
            flag, values = word, []
        else:
            values.append(word)
    yield flag, values


def _is_key(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and (key == "config" or ("." in key and key.split(".")[0] in SECTIONS))


def _flag(word: str, values: list[str], known: Collection[str], translation: Translation) -> None:
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_")
    all_values = [value, *values] if equals else values
    if name in known or name.removeprefix("no_") in known:
        system, new = VALUES.get((name, all_values[0] if all_values else ""), (None, None))
        if system is None:
            translation.words += [word, *values]
        else:
            translation.words += [f"--{name}={new}"] if new else []
            translation.notes.append(
                f"--{name} {all_values[0]} as {f'--{name} {new}' if new else 'nothing'} ({system})"
            )
        return
    counterpart = change_of_flag(name)
    if counterpart is None:
        translation.words += [word, *values]
        return
    system, change = counterpart
    if name == "logging_dir" and all_values:
        os.environ["TENSORBOARD_LOGGING_DIR"] = all_values[0]
    _apply(f"--{name}", change, all_values[0] if len(all_values) == 1 else all_values or ["true"], system, translation)


def _keys(keys: FlagValues, translation: Translation) -> None:
    """Translate dotted keys; `policy_loss_fn` overrides `adv_estimator` as the algorithm."""
    parts: dict[str, Translation] = {}
    for key, value in keys.items():
        parts[key] = part = Translation()
        change = change_of_key(key)
        if change is None:
            part.problems.append(f"{key}={value!s:.60}: unknown key; see docs/migration.md")
            continue
        try:
            _apply(key, change, _resolved(value), "RLLaVA", part)
        except ValueError as error:
            part.problems.append(f"{key}={value!s:.60}: {error}")
    if any(parts[key].words for key in parts if key.endswith(".policy_loss_fn")):
        parts.pop("algorithm.adv_estimator", None)
    for part in parts.values():
        translation.words += part.words
        translation.problems += part.problems
        translation.notes += part.notes


def _apply(name: str, change: Change, value: object, system: str, translation: Translation) -> None:
    original = f"{name}{' ' if name.startswith('--') else '='}{' '.join(value) if isinstance(value, list) else value}"
    try:
        words = None if change.read is None else change.read(value)
    except ValueError as error:
        translation.problems.append(f"{original}: option of {system}; here: {error}")
        return
    if words is None:
        note = f"; {change.note}" if change.note else ""
        translation.problems.append(f"{original}: option of {system}; here: {change.new}{note}")
        return
    translation.words += words
    translation.notes.append(f"{name} as {' '.join(words) or change.new} ({system})")


def _flat(mapping: Mapping[str, object], start: str) -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _resolved(value: object) -> object:
    """Substitute environment variables, `${oc.env:NAME,default}`, in a value.

    Raises:
        ValueError: it references another key.
    """
    if not isinstance(value, str) or "${" not in value:
        return value
    text = ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[2] or ""), value)
    if "${" in text:
        raise ValueError("references to other keys are not supported; write the value itself")
    return text
