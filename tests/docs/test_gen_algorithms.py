"""docs/algorithms.md is what the table of algorithms says, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.gen_algorithms import page
from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.algorithms import find_algorithm
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_example_of_an_own_algorithm_trains(tiny_model: Path, tmp_path: Path):
    (code,) = re.findall(r"```python\n(# mine\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    (tmp_path / "mine.py").write_text(code)
    entries = [find_algorithm(f"{tmp_path / 'mine.py'}:{name}") for name in ("median_advantage", "Unclipped")]
    assert [(each.uses_trl_advantage, each.uses_trl_loss) for each in entries] == [(False, True), (True, False)]
    chosen = settings(tmp_path, max_steps=1, algorithm_options={"strength": 0.5})
    args = VLMGRPOConfig.of(f"{tmp_path / 'mine.py'}:mine", **chosen)
    trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    values = trainer._logs["rewards"]["length_reward"]
    median = sorted(values)[1]  # of four, the lower of the two in the middle
    assert list(trainer._logs["advantages"]) == pytest.approx([0.5 * (value - median) for value in values])
    assert trainer.state.log_history[0]["grad_norm"] > 0
