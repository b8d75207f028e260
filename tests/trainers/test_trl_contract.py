"""What the pipeline relies on in TRL: an upgrade that changes it fails here first."""

from __future__ import annotations

import inspect

import pytest
from trl import GRPOTrainer, RLOOTrainer

SIGNATURES = {
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
}


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(trainer: type, name: str):
    assert list(inspect.signature(getattr(trainer, name)).parameters) == SIGNATURES[name]


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
def test_log_prob_signature_begins_as_relied_upon(trainer: type):
    names = list(inspect.signature(trainer._get_per_token_logps_and_entropies).parameters)
    assert names[:8] == [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ]
