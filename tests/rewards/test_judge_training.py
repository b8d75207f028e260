"""Two slow rewards in a real training: TRL awaits them together, and the judge's failures reach the log."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.rewards.server import JudgeServer, Reply
from tests.support.training import length_reward, settings, user
from vlm_grpo.rewards import JudgeSettings, accuracy, judge_client, make_concurrent, make_reward


@pytest.fixture
def text_rows() -> Dataset:
    return Dataset.from_list([{"prompt": user(f"How many? {n}"), "answer": str(n)} for n in range(4)])


def test_judge_and_accuracy_in_trls_own_trainer(
    text_rows: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(judge_client, "FIRST_PAUSE", 0.01)
    # A random model writes no answer block: all that it writes is the answer here.
    monkeypatch.setattr(accuracy, "predicted_answer", lambda completion, record: completion.strip() or "x")
    monkeypatch.setattr(accuracy, "is_prompt_injection", lambda answer: False)
    seen: Counter[str] = Counter()

    def script(case: dict[str, Any]) -> Reply:
        seen[case["answer_to_grade"]] += 1
        return Reply("0.5") if len(seen) % 2 else Reply("no idea")

    with JudgeServer(script) as server:
        judge = make_reward("judge", judge=JudgeSettings("m", server.url))
        functions = make_concurrent([length_reward, judge, make_reward("accuracy")])
        trainer = GRPOTrainer(str(tiny_model), functions, GRPOConfig(**settings(tmp_path)), train_dataset=text_rows)
        trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["judge/asked"] == 4 and 0 < logged["judge/fallbacks"] < 4
    assert logged["rewards/judge/mean"] > 0.0 and "rewards/accuracy/mean" in logged
