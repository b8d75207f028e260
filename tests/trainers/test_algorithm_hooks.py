"""The hooks of an algorithm as the trainer calls them, in the order that `Algorithm` documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.training import image_rows, settings
from tests.trainers.test_algorithms import by_text
from vlm_grpo.algorithms import ALGORITHMS, Algorithm, LossInputs, register_algorithm
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

IN_ORDER = ["hints", "demonstrations", "advantages", "mask_tokens", "finish", "token_loss", "extra_loss"]


class Recorder(Algorithm):
    """REINFORCE that notes which hooks are called, and counts rollouts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[str] = []
        self.rollouts = 0

    def __getattribute__(self, name: str) -> Any:
        if name in IN_ORDER:
            self.calls.append(name)
        return super().__getattribute__(name)

    def finish(self, rollout: Any) -> None:
        self.rollouts += 1

    def token_loss(self, inputs: LossInputs) -> Tensor:
        return -inputs.advantages * inputs.logps

    def state_dict(self) -> dict[str, int]:
        return {"rollouts": self.rollouts}

    def load_state_dict(self, state: Mapping[str, int], where: str) -> None:
        self.rollouts = state["rollouts"]


@pytest.fixture
def recorder() -> Iterator[str]:
    register_algorithm("recorder", family=Recorder)
    yield "recorder"
    del ALGORITHMS["recorder"]


def build(name: str, model: Path, folder: Path, **options: Any) -> VLMGRPOTrainer:
    args = VLMGRPOConfig.of(name, **settings(folder, per_device_train_batch_size=8, **options))
    return VLMGRPOTrainer(str(model), by_text, args, train_dataset=image_rows(16), eval_dataset=image_rows(4))


def test_hooks_are_called_in_the_documented_order(recorder: str, tiny_model: Path, tmp_path: Path):
    """Two rollouts of one micro-batch each; an evaluation calls the loss alone."""
    trainer = build(recorder, tiny_model, tmp_path, max_steps=2)
    trainer.train()
    assert trainer.algorithm.calls == IN_ORDER * 2
    places = [Algorithm.__doc__.index(f"`{name}(") for name in IN_ORDER]
    assert places == sorted(places)
    trainer.algorithm.calls.clear()
    trainer.evaluate()
    assert set(trainer.algorithm.calls) == {"token_loss"}


def test_the_state_of_an_algorithm_is_part_of_a_checkpoint(recorder: str, tiny_model: Path, tmp_path: Path):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    build(recorder, tiny_model, tmp_path, **options).train()
    path = tmp_path / "checkpoint-2" / "algorithm.json"
    assert json.loads(path.read_text(encoding="utf-8")) == {"rollouts": 2}
    resumed = build(recorder, tiny_model, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(path.parent))
    assert resumed.algorithm.rollouts == 3
