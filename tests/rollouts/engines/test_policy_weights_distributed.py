"""What an engine is sent by two real processes, however they shard the policy: what one process sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.trainers.test_distributed import train, write_data

ENGINE = '''
from pathlib import Path
import torch
from vlm_grpo.rollouts.engines.engine import Generation

class Notebook:
    """Answers as the prompt and the place in its group say; writes down the weights of every update."""
    needs_whole_groups, has_own_weights = False, True

    def __init__(self, run):
        self.folder, self.updates = run.folder / f"rank_{run.ranks.index}", 0
        self.folder.mkdir(parents=True)

    def generate(self, prompts, *, max_new_tokens=None, is_greedy=False):
        ids = [[300 + (len(prompt.input_ids) + row % 4 * 7) % 60] * (1 + row % 4) for row, prompt in enumerate(prompts)]
        return Generation(ids, [[-6.0] * len(each) for each in ids])

    def update_weights(self, weights):
        torch.save({name: tensor.clone() for name, tensor in weights}, self.folder / f"{self.updates}.pt")
        self.updates += 1

    def close(self):
        (self.folder / "closed").touch()
'''
ADAPTED = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "lora_dropout": 0}


def sent(folder: Path, mode: str, rank: int, update: int) -> dict[str, torch.Tensor]:
    """The weights of an update as a process received them."""
    return torch.load(folder / mode / "rollout_engine" / f"rank_{rank}" / f"{update}.pt")


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("modes", "more"),
    [(("ddp", "zero3", "fsdp2.yaml"), {}), (("ddp", "zero3"), ADAPTED), (("fsdp2.yaml",), ADAPTED)],
    ids=["full", "lora", "fsdp2_lora"],
)
def test_two_processes_send_what_one_sends(modes: tuple, more: dict, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    (tmp_path / "own.py").write_text(ENGINE, encoding="utf-8")
    options = {"max_steps": 3, "save_strategy": "no", "rollout_engine": f"{tmp_path / 'own.py'}:Notebook", **more}
    options["vllm_importance_sampling_correction"] = "false"  # completions are scripted, without log-probabilities
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    assert all(entry["grad_norm"] > 1e-3 for entry in one[:3])
    for mode in modes:
        train(mode, "grpo", tiny_model, tmp_path, **options)
        for rank in (0, 1):
            assert (tmp_path / mode / "rollout_engine" / f"rank_{rank}" / "closed").exists()
            for update in range(3):
                expected, received = sent(tmp_path, "one", 0, update), sent(tmp_path, mode, rank, update)
                assert received.keys() == expected.keys()
                assert max((received[name] - expected[name]).abs().max() for name in expected) < 1e-4
    first, last = (sent(tmp_path, "one", 0, update) for update in (0, 2))
    assert max((first[name] - last[name]).abs().max() for name in first) > 1e-3
    assert json.loads((tmp_path / "one" / "trainer_state.json").read_text())["global_step"] == 3
