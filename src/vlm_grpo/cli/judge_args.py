"""Checks of the --judge_* flags: a reward uses the judge, its model is set, its server is reachable."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlm_grpo.records import Row
from vlm_grpo.redact import redact_text
from vlm_grpo.rewards import REWARDS, JudgeSettings, has_option
from vlm_grpo.rewards.accuracy import JUDGE_METHODS
from vlm_grpo.rewards.judge_client import MODEL, get_judge

if TYPE_CHECKING:
    from vlm_grpo.trainers.config import VLMGRPOConfig


FLAGS = ("model", "base_url", "api_key_variable", "timeout", "retries", "concurrency")
JUDGED_LINE = re.compile(rb'"accu_reward_method"\s*:\s*"(?:judge|llm)"')
CONNECT_TIMEOUT = 5.0  # seconds for a connection


def judge_flags(training: VLMGRPOConfig) -> list[str]:
    """Return the --judge_* flags of this run."""
    return [f"--judge_{name}" for name in FLAGS if getattr(training, f"judge_{name}") is not None]


def check_judge(specs: Iterable[str], reward_method: str | None, training: VLMGRPOConfig) -> None:
    """Check that a reward reads the judge flags, and that the judge has a model and a reachable server.

    Raises:
        ValueError: a check fails.
        ImportError: the package openai is missing.
    """
    names = [name for name in specs if has_option(name, "judge")]
    flags = judge_flags(training)
    if flags and not names:
        known = ", ".join(name for name in REWARDS if has_option(name, "judge"))
        raise ValueError(f"{', '.join(flags)} would have no effect: only the rewards {known} use a judge")
    if names and is_judged(specs, reward_method):
        settings = training.judge_settings()
        check_reachable(get_judge(settings).settings)


def is_judged(specs: Iterable[str], reward_method: str | None) -> bool:
    """Return whether the command line selects the judge; records may select it too."""
    methods = (reward_method or "").split(":")
    return any(spec.split(":")[0] == "judge" for spec in specs) or any(name in methods for name in JUDGE_METHODS)


def check_judged_rows(
    specs: Iterable[str], reward_method: str | None, training: VLMGRPOConfig, dataset: Iterable[Row]
) -> None:
    """Check that the command line or a record uses the judge if --judge_* flags are set; reads the records.

    Raises:
        ValueError: nothing uses the judge.
    """
    flags = judge_flags(training)
    if not flags or is_judged(specs, reward_method):
        return
    if not any(row["record"].method in JUDGE_METHODS for row in dataset):
        needed = 'the reward \'judge\', --reward_method judge, or records with "accu_reward_method": "judge"'
        raise ValueError(f"{', '.join(flags)} would have no effect without {needed}")


def check_judged_files(specs: Iterable[str], training: VLMGRPOConfig, paths: Iterable[str]) -> None:
    """Check that the judge has a model if records of jsonl files use it, by a quick search before parsing.

    Raises:
        ValueError: the judge has no model; the message names file and line.
    """
    if not any(has_option(spec, "judge") for spec in specs):
        return
    try:
        (training.judge_settings() or JudgeSettings()).complete()
    except ValueError:
        for path in paths:
            number = _judged_line(path)
            if number is not None:
                raise ValueError(
                    f"{path}:{number}: the record uses a judge, but none is configured: set --judge_model (and "
                    f"--judge_base_url) or the environment variable {MODEL}"
                ) from None


def _judged_line(path: str) -> int | None:
    """Return the number of the first line with a judge as its method."""
    with open(path, "rb") as file:
        return next((number for number, line in enumerate(file, 1) if JUDGED_LINE.search(line)), None)


def check_reachable(settings: JudgeSettings) -> None:
    """Check that the server accepts connections.

    Raises:
        ValueError: the server is not reachable.
    """
    if settings.base_url is None:
        return
    parts = urlsplit(settings.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ValueError(
            f"the judge's server {redact_text(settings.base_url)} cannot be reached: {error}; start it, or fix "
            "--judge_base_url"
        ) from error
