"""Models with linear attention, convolutions or sliding windows: one prefill, scores row by row, training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, CompileConfig
from trl.trainer.utils import add_fused_lm_head

from tests.support.families import FAMILIES_TINY
from tests.support.training import differences, picture, settings, user
from vlm_grpo.evaluation.backends.hf import generate_greedy
from vlm_grpo.model_utils import placeholder_ids
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.shared_prefill import (
    SharedPrefillGenerate,
    prompt_batch,
    prompt_indices,
    trim_completions,
    unique_prompts,
)
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.logprobs import padded_logprobs
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
NOISE = {"short_window": 0.1}  # added to weights, so that the three prompts have different answers
WINDOW = 8  # tokens, fewer than any of the prompts has
MIXED = [
    {"prompt": user("what color"), "images": [picture(0)]},
    {"prompt": user("which shape is it"), "images": [picture(1, 56, 112), picture(0)]},
    {"prompt": user("red"), "images": None},
]


def save_short_window(folder: Path) -> None:
    """Write a Gemma3 whose prompts are longer than its window."""
    FAMILIES_TINY["gemma3"](folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = WINDOW
    (folder / "config.json").write_text(json.dumps(config))


HYBRIDS = {"qwen3_5": FAMILIES_TINY["qwen3_5_nothink"], "lfm2_vl": FAMILIES_TINY["lfm2_vl"]}
BUILDERS = {**HYBRIDS, "short_window": save_short_window}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hybrid")
    for name, build in BUILDERS.items():
        build(root / name)
    return {name: root / name for name in BUILDERS}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> Callable[[str], tuple[nn.Module, Any, list[EncodedPrompt]]]:
    """A model whose answers depend on its prompt (larger weights), its processor and three prompts."""

    def load(name: str) -> tuple[nn.Module, Any, list[EncodedPrompt]]:
        model = AutoModelForImageTextToText.from_pretrained(folders[name]).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += NOISE.get(name, 0.2) * torch.randn(parameter.shape, generator=generator)
        processor = AutoProcessor.from_pretrained(folders[name])
        return model, processor, PromptEncoder(processor, {}).encode(MIXED)

    return load


def only_in_one(completions: list[list[int]]) -> int:
    """A token that only one of the different completions has, and not at its end."""
    different = {tuple(row) for row in completions}
    return next(t for row in different for t in row[:-1] if sum(t in other for other in different) == 1)


@pytest.mark.parametrize("decoding", ["dynamic", "static"])
@pytest.mark.parametrize("name", BUILDERS)
def test_completions_from_one_prefill_are_those_of_each_prompt_by_itself(name: str, decoding: str, loaded: Callable):
    """Prompts of different lengths are padded on the left; in the second round the rows of a prompt end early."""
    model, processor, prompts = loaded(name)
    samples = [prompts[number] for number in (0, 0, 1, 2, 2, 1, 0)]
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": placeholder_ids(model.config, processor)}
    width = prompt_batch(samples, 0)["input_ids"].size(1)
    ends: list[int] = []
    for _ in range(2):
        alone = [model.generate(**prompt_batch([sample], 0), **options)[0] for sample in samples]
        expected = [
            trim_completions(row[None, len(sample.input_ids) :], ends)[0]
            for row, sample in zip(alone, samples, strict=True)
        ]
        method = SharedPrefillGenerate(prompt_indices(samples), decoding)
        fast = model.generate(**prompt_batch(unique_prompts(samples), 0), custom_generate=method, **options)
        assert trim_completions(fast[:, width:], ends) == expected
        assert all((row[len(text) :] == 0).all() for row, text in zip(fast[:, width:], expected, strict=True))
        assert len({tuple(row) for row in expected}) == 3
        assert len({len(row) for row in expected}) == (2 if ends else 1)
        if not ends:
            ends = [only_in_one(expected)]
            options |= {"eos_token_id": ends, "pad_token_id": 0}


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_step_of_a_fixed_cache_is_one_graph(name: str, loaded: Callable):
    """Traced as it is for a GPU, but run without a compiler's kernels; `fullgraph` raises where the trace breaks."""
    model, processor, prompts = loaded(name)
    samples = [prompts[number] for number in (0, 0, 1, 2)]
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": placeholder_ids(model.config, processor)}
    expected = model.generate(**prompt_batch(samples, 0), **options)
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    method = SharedPrefillGenerate(prompt_indices(samples), "compiled")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = model.generate(
        **prompt_batch(unique_prompts(samples), 0), custom_generate=method, compile_config=config, **options
    )
    assert torch.equal(compiled, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", BUILDERS)
def test_scores_do_not_depend_on_the_padding_of_a_row(name: str, folders: dict[str, Path]):
    model = AutoModelForImageTextToText.from_pretrained(folders[name]).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompts = PromptEncoder(AutoProcessor.from_pretrained(folders[name]), {}).encode(MIXED)
    common = {"chunk": 3, "to_device": dict, "autocast": nullcontext, "compute_entropy": False, "completion": 4}

    def scored(samples: list[EncodedPrompt]) -> torch.Tensor:
        batch = prompt_batch(samples, 0)
        text = torch.arange(20, 24).expand(len(samples), -1)
        ids = torch.cat([batch["input_ids"], text], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(text)], dim=1)
        with torch.no_grad():
            return padded_logprobs(model, samples, ids, mask, **common).logps

    assert torch.allclose(scored(prompts), torch.cat([scored([prompt]) for prompt in prompts]), atol=1e-5)


def trained(kind: str, folder: Path, output: Path, **options: Any) -> Any:
    trainer, config = KINDS[kind]
    choices = {"per_device_train_batch_size": 12, "generation_kwargs": {"min_new_tokens": 8}, **options}
    made = trainer(
        str(folder), two_of_four, config(**settings(output, **choices)), train_dataset=Dataset.from_list(MIXED)
    )
    made.prefills = prompts_in_prefills(made)
    made.train()
    return made


def two_of_four(completions: list, **columns: Any) -> list[float]:
    """A signal in every group of four."""
    return [float(number % 4 > 1) for number in range(len(completions))]


def prompts_in_prefills(trainer: Any) -> list[int]:
    """Grows by the rows of each forward that begins a rollout's cache."""
    rows: list[int] = []

    def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if kwargs.get("use_cache") and kwargs["input_ids"].size(1) > 1:
            rows.append(kwargs["input_ids"].size(0))

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    return rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_training_on_mixed_rows_is_the_same_with_and_without_shared_prefills(
    name: str, kind: str, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plain = trained(kind, folders[name], tmp_path, shared_prefix="off")
    with caplog.at_level(logging.WARNING):
        fast = trained(kind, folders[name], tmp_path)
    assert (plain.prefills, fast.prefills) == ([12, 12], [3, 3])
    assert any(entry.get("grad_norm", 0) > 0 for entry in fast.state.log_history)
    assert differences(plain, fast)["logs"] < 1e-5
    messages = [record.message for record in caplog.records if "share" in record.message]
    assert len(messages) == 1 and "in scoring: layers of " in messages[0]


@pytest.mark.parametrize("name", HYBRIDS)
def test_evaluation_answers_as_generate_does(name: str, loaded: Callable):
    model, processor, prompts = loaded(name)
    rows = Dataset.from_list(MIXED)
    found = generate_greedy(model, processor, rows, batch_size=3, max_completion_length=6)
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": placeholder_ids(model.config, processor)}
    for completion, prompt in zip(found, prompts, strict=True):
        ids = model.generate(**prompt_batch([prompt], 0), **options)[0, len(prompt.input_ids) :]
        assert completion.text == prompt.opening + processor.tokenizer.decode(ids, skip_special_tokens=True)
