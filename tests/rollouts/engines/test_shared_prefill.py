"""The decoding loop: it samples what `generate` would, has a cache whatever the checkpoint says, and steps back."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, cache_utils
from transformers.cache_utils import DynamicLayer

from tests.support.families import FAMILIES_TINY
from tests.support.training import differences, image_rows, settings
from vlm_grpo.evaluation.backends.hf import generate_greedy
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines import kv_cache, shared_prefill, token_fields, transformers_compat
from vlm_grpo.rollouts.engines.shared_prefill import (
    SharedPrefillGenerate,
    prompt_batch,
    prompt_indices,
    unsupported_options,
)
from vlm_grpo.shared_prefix.compat import validate_generation
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}


@pytest.fixture(scope="module")
def prompted(tiny_model: Path) -> tuple[nn.Module, list[EncodedPrompt]]:
    """A model whose next tokens depend on the text before them, and prompts of different lengths."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, PromptEncoder(AutoProcessor.from_pretrained(tiny_model), {}).encode(list(image_rows()))


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "repetition_penalty": {"do_sample": False, "repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"do_sample": False, "no_repeat_ngram_size": 1},
    "bad_words_ids": {"do_sample": False, "bad_words_ids": [[index] for index in range(100, 300)]},
    "suppress_tokens": {"do_sample": False, "suppress_tokens": list(range(200, 500))},
    "sequence_bias": {"do_sample": False, "sequence_bias": [[[99], 50.0]]},
    "forced_eos_token_id": {"do_sample": False, "forced_eos_token_id": 2},
    "min_new_tokens": {"do_sample": False, "sequence_bias": [[[2], 9.0]], "eos_token_id": 2, "min_new_tokens": 5},
    "temperature": {"do_sample": True, "temperature": 0.3, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 3},
    "top_p": {"do_sample": True, "top_p": 0.3, "top_k": 0},
    "min_p": {"do_sample": True, "min_p": 0.3, "top_k": 0},
}


@pytest.mark.parametrize("decoding", ["dynamic", "static"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_acts_as_in_generate(option: str, decoding: str, prompted: tuple):
    """Also the draws are the same, with the same seed."""
    model, samples = prompted
    inputs = prompt_batch(samples, 0)
    options = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None, **OPTIONS[option]}
    drawn = []
    for method in (None, SharedPrefillGenerate(prompt_indices(samples), decoding)):
        torch.manual_seed(0)
        drawn.append(model.generate(**inputs, custom_generate=method, **options)[:, inputs["input_ids"].size(1) :])
    assert torch.equal(*drawn)
    if option != "greedy":
        greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert not torch.equal(drawn[0], greedy[:, inputs["input_ids"].size(1) :])


def test_an_unknown_decoding_is_refused():
    with pytest.raises(ValueError, match="decoding must be one of dynamic, static, captured, compiled, got 'fast'"):
        SharedPrefillGenerate([0], "fast")  # type: ignore[arg-type]


def test_sampling_asks_the_library_for_public_names_only():
    """Private ones come and go with every minor version."""
    for module in (shared_prefill, kv_cache, token_fields, transformers_compat):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
        own = [node for node in names if isinstance(node.value, ast.Name) and node.value.id == "self"]
        assert {node.attr for node in names if node not in own and not node.attr.startswith("__")} == set()


def rewards(completions: list, **columns: Any) -> list[float]:
    """A signal in every group of four."""
    return [float(number % 4 > 1) for number in range(len(completions))]


def build(model: Any, folder: Path, kind: str = "grpo", **options: Any) -> Any:
    trainer, config = KINDS[kind]
    choices = {"per_device_train_batch_size": 8, "generation_kwargs": {"min_new_tokens": 8}, **options}
    extra = {} if isinstance(model, str | Path) else {"processing_class": choices.pop("processing_class")}
    args = config(**settings(folder, **choices))
    return trainer(str(model) if not extra else model, rewards, args, train_dataset=image_rows(), **extra)


def forwarded(trainer: Any) -> list[tuple[int, int]]:
    """Grows by the shape of the token ids of every forward without gradients."""
    shapes: list[tuple[int, int]] = []

    def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            shapes.append(tuple(kwargs["input_ids"].shape))

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    return shapes


@pytest.fixture(scope="module")
def without_cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as many trained checkpoints are saved: no cache in any of its settings."""
    folder = tmp_path_factory.mktemp("without_cache")
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        for part in (config, config.get("text_config", {})):
            part["use_cache"] = False
        (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_says_use_cache_false_samples_with_one(
    kind: str, mode: str, without_cache: Path, tiny_model: Path, tmp_path: Path
):
    trainer = build(without_cache, tmp_path, kind, shared_prefix=mode, max_steps=1)
    assert trainer.model.generation_config.use_cache is False
    trainer.shared_prefix.is_checked = True
    shapes = forwarded(trainer)
    trainer.train()
    assert [width for _, width in shapes[1:8]] == [1] * 7
    assert differences(trainer, trained(tiny_model, tmp_path, kind, shared_prefix=mode, max_steps=1))["logs"] < 1e-5


def trained(*args: Any, **options: Any) -> Any:
    trainer = build(*args, **options)
    trainer.train()
    return trainer


def test_use_cache_false_in_the_generation_settings_of_a_run_is_obeyed(tiny_model: Path, tmp_path: Path):
    options = {"generation_kwargs": {"min_new_tokens": 8, "use_cache": False}, "max_steps": 1}
    trainer = build(tiny_model, tmp_path, **options)
    shapes = forwarded(trainer)
    trainer.train()
    widths = [width for _, width in shapes[:8]]
    assert widths == list(range(widths[0], widths[0] + 8))


def test_evaluation_of_such_a_checkpoint_uses_a_cache(without_cache: Path, tiny_model: Path):
    texts = []
    for folder in (without_cache, tiny_model):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        widths: list[int] = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs, widths=widths: widths.append(kwargs["input_ids"].size(1)), with_kwargs=True
        )
        found = generate_greedy(model, AutoProcessor.from_pretrained(folder), image_rows(), max_completion_length=4)
        texts.append([completion.text for completion in found])
        assert widths[1:] == [1] * 3
    assert texts[0] == texts[1]


@pytest.mark.parametrize("decoding", ["static", "dynamic"])
def test_a_trainer_decodes_as_it_is_told(decoding: str, tiny_model: Path, tmp_path: Path, monkeypatch: Any):
    sizes: list[int] = []
    whole = shared_prefill.static_cache
    monkeypatch.setattr(shared_prefill, "static_cache", lambda *args: sizes.append(1) or whole(*args))
    trainer = build(tiny_model, tmp_path, max_steps=1)
    trainer.engine.decoding = decoding
    trainer.train()
    assert len(sizes) == (decoding == "static")
    assert differences(trained(tiny_model, tmp_path, max_steps=1), trainer)["logs"] < 1e-5


class WithMemory(DynamicLayer):
    """A layer of keys and values that remembers something else, too; nobody says how its rows are selected."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **options: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + key_states.sum(dim=(1, 2, 3))
        return super().update(key_states, value_states, *args, **options)


@pytest.fixture
def odd_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A LLaVA whose second layer has a cache of a kind that transformers does not know."""
    FAMILIES_TINY["llava_clip"](tmp_path / "odd")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "odd")
    monkeypatch.setitem(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING, "with_memory", WithMemory)
    model.config.text_config.layer_types = ["full_attention", "with_memory"]
    return {"model": model, "processing_class": AutoProcessor.from_pretrained(tmp_path / "odd")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_layer_that_is_not_known_takes_the_plain_path(
    kind: str, odd_model: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        trainer = build(folder=tmp_path, kind=kind, max_steps=1, **odd_model)
    messages = [record.message for record in caplog.records if "in sampling" in record.message]
    assert messages == [
        "LlavaForConditionalGeneration does not share prompts between completions in sampling: cache layers of class "
        "WithMemory; the plain path is used"
    ]
    shapes = forwarded(trainer)
    trainer.train()
    assert shapes[0][0] == 8  # every row's prompt is prefilled
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)


def test_a_baseline_of_greedy_completions_needs_no_repeated_cache(odd_model: dict, tmp_path: Path):
    trainer = build(folder=tmp_path, algorithm="remax", max_steps=1, **odd_model)
    trainer.train()
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)


def test_on_refuses_such_a_cache(odd_model: dict, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--shared_prefix on: Llava.* cannot share prompts in sc.*with_memory"):
        build(folder=tmp_path, shared_prefix="on", **odd_model)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("is_encoder_decoder", True, "an encoder with a cache of its own"),
        ("cross_attention_layers", [1], "cross-attention to images"),
    ],
)
def test_what_a_cache_of_one_decoder_does_not_hold_is_refused(setting: str, value: Any, reason: str, tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    assert validate_generation(model) is None
    target = model.config if setting == "is_encoder_decoder" else model.config.text_config
    setattr(target, setting, value)
    assert validate_generation(model) == reason


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, []),
        ({"num_beams": 1, "use_cache": True, "guidance_scale": 1.0}, []),
        ({"num_beams": 2}, ["num_beams"]),
        ({"use_cache": False}, ["use_cache"]),
        ({"guidance_scale": 1.5}, ["guidance_scale"]),
        ({"prefill_chunk_size": 4}, ["prefill_chunk_size"]),
    ],
    ids=str,
)
def test_options_that_another_decoding_method_carries_out_are_left_to_it(options: dict, left: list[str]):
    assert unsupported_options(GenerationConfig(**options)) == left


def test_beams_are_searched_by_generate(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=1, generation_kwargs={"num_beams": 2, "do_sample": False})
    shapes = forwarded(trainer)
    trainer.train()
    assert shapes[0][0] == 16  # two beams for each of eight rows
