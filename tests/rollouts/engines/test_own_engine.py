"""An engine of the user's own: file.py:Class, or registered by name. It gets the weights of every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.support.training import image_rows, length_reward, settings
from vlm_grpo.rollouts.engines.table import ENGINES, engine_entry, register_engine
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

CODE = '''
import torch
from vlm_grpo.rollouts.engines.engine import Generation

class Echo:
    """Answers with fixed tokens, and keeps what it is given."""
    needs_whole_groups, has_own_weights = False, True

    def __init__(self, run):
        self.run, self.weights, self.calls = run, [], []

    def generate(self, prompts, *, max_new_tokens=None, is_greedy=False):
        self.calls.append((len(prompts), is_greedy))
        ids = [[300 + row] * (row + 1) for row in range(len(prompts))]
        return Generation(ids, [[-6.0] * len(each) for each in ids])

    def update_weights(self, weights):
        self.weights.append({name: tensor.clone() for name, tensor in weights})

    def close(self):
        self.calls.append("closed")
'''


@pytest.fixture
def own_engine(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(CODE, encoding="utf-8")
    return f"{tmp_path / 'own.py'}:Echo"


@pytest.fixture
def registered() -> Iterator[str]:
    yield "echo"
    ENGINES.pop("echo", None)


def trained(model: Path, folder: Path, engine: str, peft: Any = None, **options: Any) -> VLMGRPOTrainer:
    args = VLMGRPOConfig(**settings(folder, rollout_engine=engine, **options))
    trainer = VLMGRPOTrainer(str(model), length_reward, args, train_dataset=image_rows(), peft_config=peft)
    trainer.train()
    return trainer


def test_it_samples_with_the_weights_of_each_step(own_engine: str, tiny_model: Path, tmp_path: Path):
    trainer = trained(tiny_model, tmp_path, own_engine, max_steps=3)
    engine: Any = trainer.engine
    assert [count for count, _ in engine.calls] == [4, 4, 4]
    assert len(engine.weights) == 3
    start = load_file(tiny_model / "model.safetensors")
    assert engine.weights[0].keys() == start.keys()
    assert all(torch.equal(tensor, start[name]) for name, tensor in engine.weights[0].items())
    assert not torch.equal(*(weights["model.norm.weight"] for weights in engine.weights[1:]))
    assert engine.run.sampling.max_new_tokens == 8
    assert trainer.processing_class.image_token_id in engine.run.sampling.suppressed_token_ids
    assert trainer.state.log_history[0]["sampling/sampling_logp_difference/mean"] > 0


def test_greedy_completions_are_the_engines(own_engine: str, tiny_model: Path, tmp_path: Path):
    options = {"algorithm": "remax", "num_generations": 1, "max_steps": 1}
    engine: Any = trained(tiny_model, tmp_path, own_engine, **options).engine
    assert [is_greedy for _, is_greedy in engine.calls] == [False, True]


def test_one_update_for_each_step_whatever_is_sampled(own_engine: str, tiny_model: Path, tmp_path: Path):
    """Further prompts of dynamic sampling come from the same weights; a rollout may serve several steps."""
    options = {"dynamic_sampling": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1, "max_steps": 4}
    engine: Any = trained(tiny_model, tmp_path, own_engine, **options).engine
    assert len(engine.weights) == 2
    assert len(engine.calls) >= 2


def test_an_engine_that_sleeps_gets_its_weights_again(tiny_model: Path, tmp_path: Path):
    code = CODE.replace("Echo", "Sleeper").replace("= False, True", "= False, True\n    sleeps = True")
    code += "\n    def sleep(self):\n        self.calls.append('sleeps')\n"
    code = code.replace("self.weights.append(", "self.calls.append('weights'); self.weights.append(")
    (tmp_path / "sleeper.py").write_text(code, encoding="utf-8")
    options = {"algorithm": "remax", "num_generations": 1, "max_steps": 1}
    engine: Any = trained(tiny_model, tmp_path, f"{tmp_path / 'sleeper.py'}:Sleeper", **options).engine
    assert engine.calls == ["weights", (4, False), "sleeps", "weights", (4, True), "sleeps"]


def test_an_adapter_is_merged_and_the_policy_stays_as_it_is(own_engine: str, tiny_model: Path, tmp_path: Path):
    peft = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = trained(tiny_model, tmp_path, own_engine, peft, max_steps=1, bf16=False)
    engine: Any = trainer.engine
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    sent = dict(trainer.weight_sync.weights())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.named_parameters())
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert sent.keys() == merged.keys() == engine.weights[0].keys()
    assert all(torch.allclose(sent[name], tensor, atol=1e-6) for name, tensor in merged.items())
    start = load_file(tiny_model / "model.safetensors")
    changed = {name for name, tensor in sent.items() if not torch.equal(tensor, start[name])}
    assert {name.rsplit(".", 2)[1] for name in changed} == {"q_proj", "down_proj"}


def test_an_engine_says_why_a_completion_ended(tiny_model: Path, tmp_path: Path):
    """By a text, for instance, which no last token shows."""
    code = CODE.replace("for each in ids])", "for each in ids], ['stop', 'length', 'stop', 'stop'])")
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    trainer = trained(tiny_model, tmp_path, f"{tmp_path / 'own.py'}:Echo", max_steps=1)
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 0.25


def test_a_registered_one_goes_by_its_name(registered: str, own_engine: str, tiny_model: Path, tmp_path: Path):
    make = engine_entry(own_engine).make
    assert make is not None
    register_engine(registered, make, "Answers with fixed tokens.")
    assert type(trained(tiny_model, tmp_path, registered, max_steps=1).engine).__name__ == "Echo"
    with pytest.raises(ValueError, match="already exists"):
        register_engine(registered, make)


def test_a_class_that_lacks_a_method_is_refused(tiny_model: Path, tmp_path: Path):
    (tmp_path / "half.py").write_text("class Half:\n    def generate(self): ...\n", encoding="utf-8")
    args = VLMGRPOConfig(**settings(tmp_path, rollout_engine=f"{tmp_path / 'half.py'}:Half"))
    with pytest.raises(ValueError, match="must be a class with generate, update_weights and close"):
        VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
