"""The table of algorithms, its options, and algorithms of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.algorithms.test_group import GRADED
from vlm_grpo.algorithms import ALGORITHMS, TABLE, Algorithm, algorithm_settings, find_algorithm, register_algorithm
from vlm_grpo.algorithms import advantages as by_name
from vlm_grpo.algorithms.group import gmpo_loss
from vlm_grpo.algorithms.hpt import HPTOptions
from vlm_grpo.algorithms.luffy import LUFFYOptions
from vlm_grpo.registry import Registry

OWN = """
import torch

def best_only(rewards, *, bonus=0.0):
    \"\"\"All others get nothing.\"\"\"
    best = rewards == rewards.max(dim=1, keepdim=True).values
    return best.to(rewards.dtype) + bonus * best
"""


def test_an_algorithm_of_ones_own_from_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path / 'mine.py'}:best_only"
    assert by_name(name, GRADED, 4).tolist() == [1, 0, 0, 0]
    assert by_name(name, GRADED, 4, bonus=0.5).tolist() == [1.5, 0, 0, 0]
    config = find_algorithm(name)
    assert (config.summary, config.options) == ("All others get nothing.", {"bonus": 0.0})
    with pytest.raises(ValueError, match=r"mine.py has no 'worst_only'; its functions are best_only"):
        find_algorithm(f"{tmp_path / 'mine.py'}:worst_only")
    with pytest.raises(ValueError, match="no such file"):
        find_algorithm("nowhere.py:mine")


HALF = """
from vlm_grpo.algorithms import Algorithm

class HalfLoss(Algorithm):
    \"\"\"Half of the policy gradient.

    More about it.
    \"\"\"

    def token_loss(self, inputs):
        return -0.5 * inputs.advantages * inputs.logps

class Unrelated:
    pass
"""


def test_a_class_of_ones_own_from_a_file(tmp_path: Path):
    (tmp_path / "half.py").write_text(HALF)
    config = find_algorithm(f"{tmp_path / 'half.py'}:HalfLoss")
    assert issubclass(config.family, Algorithm) and config.summary == "Half of the policy gradient."
    assert (config.uses_trl_loss, config.uses_trl_advantage) == (False, True)
    with pytest.raises(ValueError, match=r"but not a subclass of vlm_grpo\.algorithms\.Algorithm"):
        find_algorithm(f"{tmp_path / 'half.py'}:Unrelated")


def test_a_registered_algorithm_is_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm_grpo.algorithms.ALGORITHMS", Registry("algorithm", {}))
    config = register_algorithm("mine", objective=gmpo_loss, settings={"beta": 0.1}, updates_per_rollout=2)
    assert find_algorithm("mine") is config and config.uses_trl_advantage and not config.uses_trl_loss
    assert algorithm_settings("mine", 3) == {"loss_type": "dapo", "beta": 0.1, "steps_per_generation": 6}
    with pytest.raises(ValueError, match="'mine' already exists"):
        register_algorithm("mine")


def test_the_names_are_known_without_the_trainers():
    code = (
        "import sys, vlm_grpo.algorithms; print([n for n in ('trl', 'transformers', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_says_what_trl_computes():
    """TRL's own algorithms have no advantage or loss here, but the formula of what TRL computes."""
    assert len(TABLE) == 26
    for name in ("grpo", "dapo", "rloo", "chord", "clip_cov"):
        config = ALGORITHMS[name]
        assert config.uses_trl_advantage and config.uses_trl_loss and config.formula_fn is config.trl_advantage_fn
    assert not ALGORITHMS["ppo"].uses_trl_advantage and not ALGORITHMS["opo"].uses_trl_advantage
    assert not any(ALGORITHMS[name].uses_trl_loss for name in ("gmpo", "kl_cov", "luffy", "srft", "hpt", "rloo_grpo"))
    assert [name for name, config in ALGORITHMS.items() if config.needs_greedy] == ["remax"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("luffy", {"expert_rows": 4}, "expert_rows must be 1 to 3, of 4"),
        ("luffy", {"expert_rows": 1.5}, "expert_rows of --algorithm luffy: got 1.5, default 1"),
        ("luffy", {"expert_rows": True}, "expert_rows of --algorithm luffy: got True"),
        ("luffy", {"expert_rows": None}, "expert_rows of --algorithm luffy: got None"),
        ("srft", {"correct_reward": 3}, "correct_reward of --algorithm srft: got 3"),
        ("hpt", {"hpt_threshold": 1.0}, "hpt_threshold must be at least 0 and below 1"),
        ("chord", {"mu_valley": 0.9}, "0 <= mu_valley <= mu_peak <= 1 must hold"),
        ("chord", {"mu_warmup": -1}, "must not be negative"),
        ("chord", {"expert_batch": 0}, "expert_batch must be at least 1"),
        ("chord", {"phi": 1}, "phi of --algorithm chord: got 1, default False"),
        ("uft", {"hint_low": 0.99}, "0 <= hint_low <= hint_high <= 1"),
        ("uft", {"hint_steps": 0}, "at least 1"),
        ("ppo", {"value_model": "both"}, "value_model must be one of shared, own, got {'value_model': 'both'}"),
    ],
)
def test_invalid_options_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ALGORITHMS[name].build_options(name, options, 4)


def test_options_have_defaults_and_given_values():
    """Options of functions, such as `luffy_gamma`, are none of the class."""
    assert ALGORITHMS["luffy"].build_options("luffy", {"expert_rows": 2, "luffy_gamma": 0.2}, 4) == LUFFYOptions(2)
    assert ALGORITHMS["hpt"].build_options("hpt", {"correct_above": 1, "correct_reward": "iou"}, 4) == HPTOptions(
        "iou", 1
    )
    for name, config in ALGORITHMS.items():
        assert json.loads(json.dumps(config.options)) == config.options and config.build_options(name, {}, 4)
