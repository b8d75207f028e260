"""Own code that hangs or fails: an error in time, which says whose code it was and for which row."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo import time_limits
from vlm_grpo.records import Record
from vlm_grpo.rewards import resolve_rewards
from vlm_grpo.rewards.adapter import checked_batch_reward
from vlm_grpo.time_limits import TimeLimitError, call_method, time_limit, with_time_limit

LIMIT = 0.3
COLUMNS = {"where": ["a.jsonl:1", "a.jsonl:2"]}


def own(folder: Path, text: str) -> Any:
    """The reward `score` of a file, with a time limit."""
    path = folder / "own.py"
    path.write_text("import time\n" + text)
    return resolve_rewards([f"{path}:score"], time_limit=LIMIT)[0][0]


def in_time() -> Any:
    return pytest.raises(TimeLimitError, match=r"has not returned for 0\.3 s \(--reward_time_limit")


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "while True: pass",
        "while True:\n        try: time.sleep(60)\n        except Exception: pass",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "import threading; threading.Event().wait(60)",
    ],
)
def test_a_reward_that_hangs_ends_by_name(body: str, tmp_path: Path):
    reward, begun = own(tmp_path, f"def score(completions, **columns):\n    {body}\n"), time.monotonic()
    with in_time() as error:
        reward(["a", "b"], **COLUMNS)
    assert "reward 'score' on rows a.jsonl:1 to a.jsonl:2" in str(error.value)
    assert time.monotonic() - begun < 5


def test_of_rewards_of_one_completion_the_row_is_named_and_each_has_its_time(tmp_path: Path):
    text = "def score(completion, record):\n    time.sleep(60 if record.answer == 'slow' else 0.2)\n    return 1.0\n"
    reward = own(tmp_path, text)
    records = [Record(n, "q", answer, where=f"a.jsonl:{n}") for n, answer in enumerate(["a", "b", "slow"], 1)]
    assert reward(["x"] * 2, record=records[:2]) == [1.0, 1.0]  # 0.4 s together
    with in_time() as error:
        reward(["x"] * 3, record=records)
    assert "on record 3 a.jsonl:3" in str(error.value)


def test_a_file_that_hangs_while_it_is_imported(tmp_path: Path):
    with in_time() as error:
        own(tmp_path, "time.sleep(60)\ndef score(completion, record):\n    return 1.0\n")
    assert "importing its file" in str(error.value) and "own.py:score" in str(error.value)


def test_what_is_in_time_is_left_alone(tmp_path: Path):
    before = signal.getsignal(signal.SIGALRM)
    reward = own(tmp_path, "def score(completions, **columns):\n    return [1.0] * len(completions)\n")
    assert reward(["a", "b"], **COLUMNS) == [1.0, 1.0]
    assert signal.getsignal(signal.SIGALRM) is before
    (unlimited,), _ = resolve_rewards([f"{tmp_path / 'own.py'}:score"], time_limit=0)
    assert unlimited(["a"]) == [1.0]


def test_alarms_of_a_rewards_own_still_work(tmp_path: Path):
    text = (
        "import signal\n"
        "class Late(Exception): pass\n"
        "def late(*_): raise Late\n"
        "def score(completions, **columns):\n"
        "    before = signal.signal(signal.SIGALRM, late)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "    try: time.sleep(5)\n"
        "    except Late: return [0.5] * len(completions)\n"
        "    finally: signal.signal(signal.SIGALRM, before)\n"
    )
    assert own(tmp_path, text)(["a", "b"]) == [0.5, 0.5]


def test_coroutines_have_the_limit_too(tmp_path: Path):
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(60)
        return []

    async def own_error(completions: list[str], **columns: Any) -> list[float]:
        raise TimeoutError("my server")

    async def fine(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0]

    with in_time() as error:
        asyncio.run(with_time_limit(checked_batch_reward("slow", slow), LIMIT)(completions=["a", "b"], **COLUMNS))
    assert "reward 'slow' on rows a.jsonl:1 to a.jsonl:2" in str(error.value)
    with pytest.raises(RuntimeError, match="reward 'own_error': TimeoutError: my server"):
        asyncio.run(with_time_limit(checked_batch_reward("own_error", own_error), LIMIT)(completions=["a"]))
    assert asyncio.run(with_time_limit(checked_batch_reward("fine", fine), LIMIT)(completions=["a"])) == [1.0]


def test_a_call_that_takes_long_is_mentioned_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time_limits, "WARN_AFTER", 0.05)
    for _ in range(2):
        with time_limit(lambda: "reward 'patient' on row 1", 60):
            time.sleep(0.15)
    (said,) = [record for record in caplog.records if "patient" in record.message]
    assert said.levelno == logging.WARNING and "the run ends at 60 s (--reward_time_limit)" in said.message


class Broken:
    """An environment whose methods fail as asked."""

    def reset(self) -> str:
        time.sleep(60)
        return ""

    def finish(self, text: str) -> None:
        raise KeyError(text)

    def get_reward(self) -> float:
        raise SystemExit(0)


def test_methods_of_environments_are_named():
    with in_time() as error:
        call_method(Broken(), "reset", "a.jsonl:3", LIMIT)
    assert "environment 'Broken', reset() on row a.jsonl:3" in str(error.value)
    with pytest.raises(RuntimeError, match=r"'Broken', finish\(\) on row a\.jsonl:3: KeyError: 'end'"):
        call_method(Broken(), "finish", "a.jsonl:3", LIMIT, "end")
    with pytest.raises(RuntimeError, match=r"'Broken', get_reward\(\): SystemExit: 0"):
        call_method(Broken(), "get_reward", "", LIMIT)


STUCK = """
import ctypes, sys, threading
from vlm_grpo import time_limits
time_limits.GRACE_SECONDS = 0.3
def stuck():  # holds no lock of Python's, but does not return to it
    libc = ctypes.CDLL(None)
    for _ in range(100):
        libc.sleep(60)
if {is_main}:
    with time_limits.time_limit(lambda: "reward 'stuck'", 0.2):
        time_limits.signal.pthread_sigmask(time_limits.signal.SIG_BLOCK, {{time_limits.signal.SIGALRM}})
        stuck()
else:
    def other():
        with time_limits.time_limit(lambda: "reward 'stuck'", 0.2):
            stuck()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("is_main", [True, False])
def test_what_no_signal_ends_ends_the_process(is_main: bool):
    environment = {**os.environ, "PYTHONFAULTHANDLER": ""}
    done = subprocess.run(
        [sys.executable, "-c", STUCK.format(is_main=is_main)],
        capture_output=True, text=True, timeout=20, env=environment,
    )  # fmt: skip
    assert done.returncode not in (0, None)
    assert "reward 'stuck': has not returned for 0.2 s" in done.stderr


def test_threads_that_still_run_do_not_hold_the_end():
    code = (
        "import threading, time\nfrom vlm_grpo import time_limits\ntime_limits.COROUTINE_GRACE_SECONDS = 0.1\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "raise SystemExit(time_limits.exit_status_after_hang())"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 1
