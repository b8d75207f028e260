"""With a temperature the engine's log-probabilities leave out what cannot be sampled: an engine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from tests.support.training import length_reward, picture, settings, user
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer


@pytest.mark.usefixtures("one_engine")
def test_a_temperature_counts_on_both_sides(untied_model: Path, tmp_path: Path):
    data = Dataset.from_list([{"prompt": user("what color"), "images": [picture(n)]} for n in range(4)])
    options = {"temperature": 0.5, "rollout_engine": "vllm", "max_steps": 2, "learning_rate": 1e-2}
    run = VLMGRPOTrainer(
        str(untied_model), length_reward, VLMGRPOConfig(**settings(tmp_path, **options)), train_dataset=data
    )
    run.train()
    logs = [log for log in run.state.log_history if "sampling/sampling_logp_difference/max" in log]
    # Ignored on one side it would be about 0.5; the random model gives 1 to 3 % to the suppressed placeholders.
    assert 0 < max(log["sampling/sampling_logp_difference/max"] for log in logs) < 0.05
