"""Parser of all commands except `vlm-grpo train`; suggests names for unknown flags."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from vlm_grpo.cli.migration import hint
from vlm_grpo.registry import nearest


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations that explains every unknown flag."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]  # of its overloads only the one without a namespace of another class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the command line; exit with status 2 and one sentence for each unknown argument."""
        options, unknown_words = self.parse_known_args(args, namespace)
        flags = [word for word in unknown_words if word.startswith("--")]
        problems = [self._unknown(flag[2:].partition("=")[0].replace("-", "_")) for flag in flags]
        if unknown_words:  # words after an unknown flag are its values
            self.error("; ".join(problems or [f"unexpected argument {word!r}" for word in unknown_words]))
        return options

    def _unknown(self, name: str) -> str:
        known = [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]
        advice = hint(name)
        if advice and set(re.findall(r"--(\w+)", advice)) & set(known):
            return f"unknown flag --{name}; {advice}"
        suggestions = " or ".join(f"--{option}" for option in nearest(name, known))
        return (
            f"unknown flag --{name}; did you mean {suggestions}?"
            if suggestions
            else f"unknown flag --{name}; see --help"
        )
