"""Parser of `vlm-grpo train`: TRL's parser, but it continues after an invalid value and reports all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from transformers.hf_argparser import DataClassType
from trl import TrlParser

from vlm_grpo.cli.args import FlagValues, argv_value, without_flag

EXPECTED = {"invalid int value": "must be a whole number", "invalid float value": "must be a number"}


class ParsedFlags(NamedTuple):
    """The value of every flag (the default if its value is invalid), and a sentence for each problem."""

    values: FlagValues
    problems: list[str]


class FlagParser(TrlParser):
    """TRL's parser with the additional method `read`."""

    def __init__(self, types: Sequence[type]) -> None:
        """Create a parser for the fields of these dataclasses."""
        super().__init__([DataClassType(kind) for kind in types], exit_on_error=False, add_help=False)
        for action in self._actions:
            if action.nargs is None and getattr(action.type, "__name__", "") == "string_to_bool":  # None is a value too
                action.nargs, action.const = "?", True
            elif action.dest == "report_to":  # a list of names; TRL's parser accepts only one
                action.nargs = "+"
            elif action.dest == "reward_clip_range":  # TRL's parser would split the text into characters
                action.nargs, action.type = 2, float

    def error(self, message: str) -> NoReturn:
        """Raise an exception instead of exiting."""
        raise argparse.ArgumentError(None, message)

    def read(self, argv: list[str], config: FlagValues) -> ParsedFlags:
        """Parse a command line of known flags, after a config file has set their defaults."""
        problems = self._validate_config(config)
        while True:
            try:
                namespace, unknown_words = self.parse_known_args(argv)
            except argparse.ArgumentError as error:
                if error.argument_name is None:  # no flag to skip
                    return ParsedFlags({}, [*problems, error.message])
                name = error.argument_name.split("/")[0].removeprefix("--")
                value = argv_value(argv, name)
                problems.append(_problem(name, config.get(name) if value is None else value, error.message))
                if value is None:
                    self.set_defaults(**{name: None})  # the value in the config file
                argv = without_flag(argv, name)
                continue
            stray = [f"unexpected argument {word!r}" for word in unknown_words]
            return ParsedFlags(vars(namespace), [*problems, *stray])

    def _validate_config(self, config: FlagValues) -> list[str]:
        """Return one sentence for each config value that is not a choice of its flag, which argparse does not check."""
        return [
            f"--{action.dest} {config[action.dest]}: must be one of {', '.join(map(str, action.choices))}"
            for action in self._actions
            if action.choices and config.get(action.dest) is not None and config[action.dest] not in action.choices
        ]


def _problem(name: str, value: object, message: str) -> str:
    expected = EXPECTED.get(message.split(":")[0])
    return f"--{name}: {message}" if expected is None else f"--{name} {value}: {expected}"
