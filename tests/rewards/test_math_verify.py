"""Verification runs beside the training, under a limit, and survives whatever an answer does to it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_grpo.rewards import make_reward, math_verify

SLOW = "9^{9^{9^{9}}}"  # math-verify works on this for minutes


def boxed(answer: str) -> str:
    return f"<think>a</think><answer>{answer}</answer>"


def test_a_slow_answer_is_wrong_after_the_limit_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(math_verify, "TIME_LIMIT", 1.0)
    monkeypatch.setattr(math_verify, "WORKERS", 2)
    math_verify._idle_workers.cache_clear()
    answers = [boxed(SLOW), *(boxed(f"{n}/7+1/7") for n in range(20))]
    truths = ["1", *(f"{n + 1}/7" for n in range(20))]
    reward = make_reward("accuracy")
    started = time.monotonic()
    values = reward(completions=answers, answer=truths, accu_reward_method=["math"] * 21)
    assert values == [0.0] + [1.0] * 20
    assert time.monotonic() - started < 60  # minutes without a limit
    math_verify._idle_workers.cache_clear()


def test_a_worker_that_dies_is_replaced():
    assert math_verify.is_equivalent("1/3", "2/6")
    queue = math_verify._idle_workers(math_verify.os.getpid())
    for worker in list(queue.queue):
        worker.stop()
    assert math_verify.is_equivalent("1/5", "2/10")


def test_a_ramble_is_not_verified():
    assert not math_verify.is_equivalent("1", "1+0" + "+0" * 5000)


def test_verdicts_need_no_main_guard_in_the_users_script(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text("from vlm_grpo.rewards.math_verify import is_equivalent\nprint(is_equivalent('1/2', '0.5'))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
