"""What the pipeline relies on in TRL and transformers: an upgrade that changes it fails here first."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import AutoModelForImageTextToText, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer

from tests.support.families import FAMILIES_TINY
from vlm_grpo.rollouts.engines.kv_cache import REPEATABLE_LAYERS
from vlm_grpo.rollouts.engines.transformers_compat import CACHE

SIGNATURES = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_log_metric": ["self", "name", "value"],
    "_get_train_sampler": ["self", "dataset"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "create_optimizer": ["self", "model"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_rng_state": ["self", "output_dir"],
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


def test_signature_of_generation():
    """The engine that hands prompts to TRL calls it by place."""
    prompts = ["self", "prompt_ids", "images", "multimodal_fields"]
    assert list(inspect.signature(RLOOTrainer._generate_single_turn).parameters) == prompts
    assert list(inspect.signature(GRPOTrainer._generate_single_turn).parameters)[:5] == [*prompts, "num_generations"]


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


def test_generation_hands_a_decoding_method_what_the_loop_takes():
    """`generate(custom_generate=...)` prepares prompts, processors and criteria; steps are public methods."""
    assert "custom_generate" in inspect.signature(GenerationMixin.generate).parameters
    prepare = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    assert {CACHE, "next_sequence_length", "is_first_iteration", "attention_mask"} <= {*prepare}
    assert list(inspect.signature(PreTrainedModel.get_compiled_call).parameters) == ["self", "compile_config"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_clip"])  # mRoPE, and positions of one dimension
def test_a_decoding_method_is_given_masks_positions_and_kinds_under_the_names_of_forwards(family: str, tmp_path: Path):
    FAMILIES_TINY[family](tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    given: dict[str, Any] = {}

    def method(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, **prepared: Any) -> Any:
        given.update(prepared)
        assert callable(logits_processor) and callable(stopping_criteria)
        return input_ids

    ids = torch.tensor([[0, 20, 21], [20, 21, 22]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    if family == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = torch.zeros_like(ids)
    model.generate(**inputs, custom_generate=method, max_new_tokens=4, pad_token_id=0)
    assert given["generation_config"].max_length == 7 and given["generation_config"].pad_token_id == 0
    assert given["attention_mask"].shape == (2, 3)
    assert given["position_ids"].shape[-2:] == (2, 3) and given["position_ids"][..., 0, :].max() == 1
    assert all(given[name].shape == (2, 3) for name in inputs if name != "input_ids")


@pytest.mark.parametrize("layer", REPEATABLE_LAYERS, ids=lambda layer: layer.__name__)
def test_layers_of_a_cache_select_rows(layer: type):
    assert list(inspect.signature(layer.reorder_cache).parameters) == ["self", "beam_idx"]
    assert layer in {*DYNAMIC_LAYER_TYPE_MAPPING.values()}


def test_states_of_linear_layers_are_written_by_the_cache():
    for name, states in (("update_conv_state", "conv_states"), ("update_recurrent_state", "recurrent_states")):
        assert list(inspect.signature(getattr(StaticCache, name)).parameters)[1:4] == [states, "layer_idx", "state_idx"]


def test_the_rest_of_what_is_used_of_transformers_is_there():
    assert {"register"} <= {*dir(ALL_ATTENTION_FUNCTIONS)} & {*dir(ALL_MASK_ATTENTION_FUNCTIONS)}
    assert hasattr(PreTrainedModel, "_supports_attention_backend")
    assert hasattr(PreTrainedConfig, "_attn_implementation")


def test_the_installed_version_is_one_that_setup_allows():
    """With `run_scripts/test_transformers.sh` both ends of the range are installed and tested."""
    setup = (Path(__file__).resolve().parents[2] / "setup.py").read_text(encoding="utf-8")
    (allowed,) = re.findall(r'"transformers([^"]+)"', setup)
    assert transformers.__version__ in SpecifierSet(allowed)
