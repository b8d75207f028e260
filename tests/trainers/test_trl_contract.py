"""What the pipeline relies on in TRL: an upgrade that changes it fails here first."""

from __future__ import annotations

import inspect

import pytest
from transformers import GenerationMixin
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer

SIGNATURES = {
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_generate": ["self", "prompts"],
    "_log_metric": ["self", "name", "value"],
    "_get_train_sampler": ["self", "dataset"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_rng_state": ["self", "output_dir"],
    "_load_rng_state": ["self", "checkpoint"],
    "_save_checkpoint": ["self", "model", "trial"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_init_training_state": [
        *("self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs"),
        *("resume_from_checkpoint", "trial"),
    ],
}


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(trainer: type, name: str):
    assert list(inspect.signature(getattr(trainer, name)).parameters) == SIGNATURES[name]


def test_one_generation_is_refused_by_one_of_the_last_checks():
    """Algorithms that need no group go on where TRL stops; what it checks after that is about vLLM alone."""
    source = inspect.getsource(GRPOConfig.__post_init__)
    _, after = source.split("at least 2 generations")
    assert all("vllm_" in check for check in after.split("\n\n        if ")[1:])


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


def test_generation_has_the_steps_that_sampling_from_one_prefill_takes():
    """They are what a method given as `generate(custom_generate=...)` is made of."""
    prefill = ["self", "input_ids", "generation_config", "model_kwargs"]
    assert list(inspect.signature(GenerationMixin._prefill).parameters)[:4] == prefill
    update = inspect.signature(GenerationMixin._update_model_kwargs_for_generation).parameters
    assert list(update)[:3] == ["self", "outputs", "model_kwargs"]
    assert "next_sequence_length" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
