"""Two processes that learn from an expert's answers against one, by the training command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainers.test_distributed import assert_equal_steps, train, weights, write_data

OPTIONS = {
    "luffy": {},
    "srft": {},
    "hpt": {"correct_above": 0.7, "hpt_threshold": 0.3},
    "chord": {"mu_warmup": 0, "expert_batch": 3},  # one process has a row that counts less than the other's
    "uft": {"hint_high": 0.5, "hint_coef": 0.5},
}
ANSWERS = {0: "1. 2. 3", 1: ["4. 5", "6. So"], 3: "7. 8"}  # the third has none


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["hpt", "chord", pytest.param("uft", marks=pytest.mark.extended)])
def test_two_processes_equal_one(name: str, tiny_model: Path, tmp_path: Path):
    """With images of other sizes on each, and a prompt without one on the second process."""
    write_data(tmp_path, (["0.png"], [], ["2.png"], ["3.png"]))
    lines = [json.dumps({"id": number, "expert": answer}) + "\n" for number, answer in ANSWERS.items()]
    (tmp_path / "expert.jsonl").write_text("".join(lines))
    options = {
        "max_steps": 3,
        "save_strategy": "no",
        "algorithm": name,
        "algorithm_options": json.dumps(OPTIONS[name]),
        "expert_data_file_paths": tmp_path / "expert.jsonl",
    }
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    two = train("ddp", "grpo", tiny_model, tmp_path, **options)
    assert all(entry["grad_norm"] > 1e-3 for entry in one[:3])
    assert_equal_steps(one, two, 3)
    own = [key for key in one[0] if key.startswith("expert/")]
    assert own and all(two[0][key] == pytest.approx(one[0][key], abs=1e-5) for key in own)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "ddp")
    assert max((found[key] - expected[key]).abs().max() for key in expected) < 1e-4  # a step moves by 1e-3
