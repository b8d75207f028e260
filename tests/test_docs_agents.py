"""The environment of docs/agents.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.environments import call, scripted_turns
from tests.support.training import image_rows, settings
from vlm_grpo.envs import ToolError, find_environment
from vlm_grpo.trainers.config import VLMRLOOConfig
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "agents.md"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """The class of the page, in a file of its own."""
    (code,) = re.findall(r"```python\n(# twenty_questions.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "twenty_questions.py"
    path.write_text(code, encoding="utf-8")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 40  # "in 30 lines", its docstrings aside
    return f"{path}:Guess"


def test_the_example_plays(name: str):
    game = find_environment(name)(tries=7)
    game.reset(id=3)
    low, high = 1, 100
    while not game.done:
        number = (low + high) // 2
        answer = game.guess(number)
        low, high = (number + 1, high) if answer == "higher" else (low, number - 1)
    assert answer == "right"
    assert 0 < game.get_reward() <= 1
    with pytest.raises(ToolError, match="from 1 to 100, got 0"):
        game.guess(0)
    game.reset(id=3)
    assert game.get_reward() == 0.0


def test_the_example_trains(name: str, tiny_model: Path, tmp_path: Path):
    args = VLMRLOOConfig(**settings(tmp_path, max_completion_length=600, max_steps=1))
    trainer = VLMRLOOTrainer(str(tiny_model), [], args, train_dataset=image_rows(), environment_factory=name)
    scripted_turns(
        trainer, [(call("guess", number=number), call("guess", number=50), "?") for number in (50, 0, 99, 1)]
    )
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["episodes/calls"] == 2
    assert entry["episodes/failed_calls"] == 0.25
    assert entry["episodes/turns"] == 3


def test_every_environment_is_on_the_page():
    from vlm_grpo.envs import ENVIRONMENTS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{entry}` |" in text for entry in ENVIRONMENTS)
