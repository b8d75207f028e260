"""Every family trains on rows with one, two and no images in one batch, saves, reloads and resumes bit for bit.

PaliGemma needs an image in every row.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.data.files import turns, write_jsonl
from tests.support.families import FAMILIES_TINY, MODEL_TYPES, NEEDS_IMAGES, facts_of
from tests.support.training import picture, settings, user
from vlm_grpo.data import load_dataset
from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation import evaluate
from vlm_grpo.families import FAMILIES
from vlm_grpo.model_utils import freeze_vision, placeholder_ids, towers_of
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.prompt_lengths import PromptLengths
from vlm_grpo.rollouts.video import WITHOUT_VIDEOS
from vlm_grpo.shared_prefix.compat import validate_scoring
from vlm_grpo.tool_call_formats import TOOL_CALL_FORMATS, find_tool_call_format
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.logprobs import PaddedRows, model_inputs, with_dummy_row
from vlm_grpo.trainers.rloo import VLMRLOOTrainer
from vlm_grpo.trainers.state_file import load_state

WORD = 40  # an ordinary token of every tokenizer here
each_family = pytest.mark.parametrize("family", FAMILIES_TINY)


def rows(family: str = "") -> list[dict[str, Any]]:
    """One image; two of other shapes, one of them shown in the first row too; none, where the family can do without."""
    last = [picture(2)] if family in NEEDS_IMAGES else None
    return [
        {"prompt": user("what color"), "images": [picture(0)]},
        {"prompt": user("which shape is it"), "images": [picture(1, 56, 112), picture(0)]},
        {"prompt": user("red"), "images": last},
    ]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the rows of a family from a file, with answers."""
    return lru_cache(lambda family: rows_from_file(tmp_path_factory.mktemp("held_out"), rows(family)))


def rows_from_file(folder: Path, data: list[dict[str, Any]]) -> Any:
    lines = []
    for number, row in enumerate(data):
        names = [f"{number}_{place}.png" for place, _ in enumerate(row["images"] or [])]
        for name, image in zip(names, row["images"] or [], strict=True):
            image.save(folder / name)
        question = "<image>" * len(names) + row["prompt"][0]["content"]
        lines.append({"id": number, "conversations": turns(question, "red"), **({"image": names} if names else {})})
    return load_dataset(write_jsonl(folder / "rows.jsonl", lines), image_folders=str(folder))


def alternating_reward(completions: list, **columns: Any) -> list[float]:
    """0 and 1 in every group of two, whatever was sampled: every row has an advantage."""
    return [float(index % 2) for index in range(len(completions))]


def build(model: Path, folder: Path, data: list[dict[str, Any]] | None = None, **options: Any) -> Any:
    args = VLMGRPOConfig(**arguments(folder, **options))
    return VLMGRPOTrainer(str(model), alternating_reward, args, train_dataset=Dataset.from_list(data or rows()))


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    batch = {"per_device_train_batch_size": 6, "num_generations": 2, "max_completion_length": 4}
    return settings(folder, **{**batch, **options})


def build_rloo_with_adapter(model: Path, folder: Path, data: list[dict[str, Any]] | None = None, **options: Any) -> Any:
    """Every second checkpoint falls into the middle of a rollout."""
    args = VLMRLOOConfig(**arguments(folder, num_iterations=2, beta=0.1, max_steps=3, **options))
    trained = {"train_dataset": Dataset.from_list(data or rows()), "peft_config": LoraConfig(target_modules=None)}
    return VLMRLOOTrainer(str(model), alternating_reward, args, **trained)


def tower_state(model: Any) -> dict[str, Tensor]:
    """Of the tower that sees images; a prompt without sound moves no other."""
    tower = FAMILIES[model.config.model_type].vision_tower
    return model.get_submodule(tower).state_dict()


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() and one
    return max((one[name] - other[name]).abs().max().item() for name in one)


@each_family
def test_two_steps_save_reload_evaluate_and_resume(family: str, folder_of: Any, held_out: Any, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(folder_of(family))
    whole = build(folder_of(family), tmp_path, rows(family), save_strategy="steps", save_steps=1)
    whole.train()
    steps = [entry for entry in whole.state.log_history if "loss" in entry]
    assert len(steps) == 2
    assert all(math.isfinite(step[name]) for step in steps for name in ("loss", "grad_norm"))
    assert all(step["grad_norm"] > 0 for step in steps)
    assert largest_difference(tower_state(whole.model), tower_state(before)) > 1e-4

    reloaded, processor = loaded(tmp_path / "checkpoint-2")
    assert largest_difference(reloaded.state_dict(), whole.model.state_dict()) == 0
    evaluation = evaluate(reloaded, processor, held_out(family), batch_size=3, max_completion_length=3)
    assert [len(entry["images"]) for entry in evaluation.predictions] == [len(r["images"] or []) for r in rows(family)]
    assert evaluation.metrics["accuracy"].count == 3

    resumed = build(folder_of(family), tmp_path, rows(family))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert largest_difference(resumed.model.state_dict(), whole.model.state_dict()) == 0


@each_family
def test_rloo_with_an_adapter_resumes_in_the_middle_of_a_rollout(family: str, folder_of: Any, tmp_path: Path):
    whole = build_rloo_with_adapter(folder_of(family), tmp_path, rows(family), save_strategy="steps", save_steps=1)
    whole.train()
    resumed = build_rloo_with_adapter(folder_of(family), tmp_path, rows(family))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert load_state(tmp_path / "checkpoint-1" / "training_state" / "rollout_0.safetensors")["batches"]
    assert largest_difference(adapter_state(resumed.model), adapter_state(whole.model)) == 0
    first = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    assert largest_difference(first, get_peft_model_state_dict(whole.model)) > 1e-4


def adapter_state(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@each_family
def test_a_frozen_tower_stays_while_the_rest_moves(family: str, folder_of: Any, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(folder_of(family))
    trainer = build(folder_of(family), tmp_path, rows(family), freeze_vision_modules=True, max_steps=1)
    trainer.train()
    assert largest_difference(tower_state(trainer.model), tower_state(before)) == 0
    assert largest_difference(trainer.model.state_dict(), before.state_dict()) > 1e-4


@each_family
def test_a_mixed_batch_scores_and_answers_each_row_as_if_it_were_alone(family: str, folder_of: Any):
    """A batch of our own making, with a blank row, against the plain processor and model row by row."""
    model, processor = loaded(folder_of(family))
    encoder = PromptEncoder(processor, {})
    samples = encoder.encode(rows(family))
    batch = with_dummy_row(padded(samples, [WORD]), encoder.dummy_prompt("image"), completion=1)
    with torch.no_grad():
        together = model(**model_inputs(*batch, completion=1)).logits[:3, -2]  # (rows, vocabulary)
        alone = torch.cat([model(**plain_inputs(processor, row)).logits[:, -1] for row in rows(family)])
        swapped = {**rows()[1], "images": rows()[1]["images"][::-1]}
        other = model(**plain_inputs(processor, swapped)).logits[:, -1]
    assert torch.allclose(together, alone, atol=1e-5)
    assert (other - alone[1]).abs().max() > 1e-3  # images in the wrong places would be seen

    greedy = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    greedy["suppress_tokens"] = placeholder_ids(model.config, processor)
    answers = model.generate(**model_inputs(*padded(samples, []), completion=0), **greedy)[:, -3:]
    for row, answer in zip(rows(family), answers, strict=True):
        expected = model.generate(**plain_inputs(processor, row), **greedy)[0, -3:]
        assert answer.tolist() == expected.tolist()


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def padded(samples: list[Any], completion: list[int]) -> PaddedRows:
    """The prompts padded on the left, each before the completion."""
    longest = max(len(sample.input_ids) for sample in samples)
    missing = [longest - len(sample.input_ids) for sample in samples]
    ids = [[0] * count + sample.input_ids + completion for count, sample in zip(missing, samples, strict=True)]
    mask = [[0] * count + [1] * (longest - count + len(completion)) for count in missing]
    return PaddedRows(samples, torch.tensor(ids), torch.tensor(mask))


def plain_inputs(processor: Any, row: dict[str, Any]) -> dict[str, Tensor]:
    images = [open_image(image_ref(image, "")) for image in row["images"] or []]
    question = {"type": "text", "text": row["prompt"][0]["content"]}
    blocks = [*({"type": "image", "image": image} for image in images), question]
    inputs = processor.apply_chat_template(
        [user(blocks)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return {name: value for name, value in inputs.items() if name != "labels"}  # PaliGemma's, of no use here


@pytest.mark.parametrize("family", ["llava_onevision", "smolvlm"])
def test_families_that_need_all_images_of_a_prompt_process_none_twice(family: str, folder_of: Any):
    """The first prompt has one image, the second two, the third none."""
    encoder = PromptEncoder(AutoProcessor.from_pretrained(folder_of(family)), {})
    encoder.encode(rows())
    assert encoder.counters.processed == 3


def test_a_frozen_tower_under_lora_trains_no_adapter_of_its_own(folder_of: Any):
    base = AutoModelForImageTextToText.from_pretrained(folder_of("llava_clip"))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    assert any("vision_tower" in name for name in trained(model))
    freeze_vision(model)
    assert trained(model) and not any("vision_tower" in name for name in trained(model))


def test_an_adapter_goes_to_the_language_model_alone_where_there_is_a_tower_for_sound(folder_of: Any, tmp_path: Path):
    names = trained(build_rloo_with_adapter(folder_of("qwen3_omni"), tmp_path).model)
    assert names and all(".language_model." in name for name in names)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@each_family
def test_facts_are_those_of_the_loaded_model(family: str, folder_of: Any):
    """Tower, projector, language model and head hold every parameter; placeholders are what may not be sampled."""
    model, processor = loaded(folder_of(family))
    facts = FAMILIES[model.config.model_type]
    places = (*towers_of(facts), *facts.projector, facts.language_model)
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    assert set(places) - set(facts.other_towers) <= set(names)  # a checkpoint may come without sound
    rest = [name for name, _ in model.named_parameters() if not name.startswith(tuple(f"{p}." for p in places))]
    assert set(rest) <= {"lm_head.weight", *facts.projector}
    known = processor.tokenizer.get_vocab()
    marks = {known[mark] for mark in facts.placeholders}
    assert marks and marks <= set(placeholder_ids(model.config, processor))


def test_the_table_holds_no_family_that_is_not_tried():
    assert {MODEL_TYPES.get(name, name) for name in FAMILIES_TINY} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_what_the_table_says_of_prefix_videos_and_tools(family: str, folder_of: Any):
    """A template of the makers' that knows tools names them; those of our own making know none."""
    model, processor = loaded(folder_of(family))
    facts = facts_of(family)
    assert model.config.model_type == MODEL_TYPES.get(family, family)
    assert validate_scoring(model) == facts.refuses_prefix
    reads_videos = getattr(processor, "video_processor", None) is not None
    assert (reads_videos and type(processor).__name__ not in WITHOUT_VIDEOS) == facts.has_video
    if "tools" in processor.chat_template:
        assert find_tool_call_format(processor.chat_template) is TOOL_CALL_FORMATS[facts.tools]


class Unknown(nn.Module):
    """A model of no known family; `tower` is what its vision tower is called."""

    def __init__(self, tower: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="brand_new_vl")
        self.body = nn.ModuleDict({tower: nn.Linear(2, 3), "language_model": nn.Linear(3, 2)})


def test_the_tower_of_an_unknown_family_is_found_by_name_with_a_warning(caplog: pytest.LogCaptureFixture):
    model = Unknown("vision_tower")
    with caplog.at_level(logging.WARNING):
        assert freeze_vision(model) == 2 * 3 + 3
    assert "brand_new_vl is not a known family" in caplog.text
    assert trained(model) == {"body.language_model.weight", "body.language_model.bias"}


def test_an_unknown_family_without_a_tower_is_refused():
    with pytest.raises(ValueError, match=r"brand_new_vl.*none of visual, vision_tower, vision_model"):
        freeze_vision(Unknown("eye"))


SIZES = ((84, 56), (200, 150), (56, 168), (240, 60))


@each_family
def test_prompt_lengths_are_those_of_the_processor(family: str, folder_of: Any):
    """Without images, with one, with two of the same and of other sizes; what has no rule is measured."""
    encoder = PromptEncoder(AutoProcessor.from_pretrained(folder_of(family)), {})
    none = [] if family in NEEDS_IMAGES else [[]]
    shown = [*none, *([one] for one in SIZES), [SIZES[0], SIZES[1]], [SIZES[2], SIZES[2]], [SIZES[1], SIZES[3]]]
    length_of = PromptLengths(encoder)
    for number, sizes in enumerate([*shown, *shown]):  # at first, and when it is known whether the rule holds
        row = {"prompt": user("which color\n" * number), "images": [picture(3, *size) for size in sizes]}
        assert length_of(row) == len(encoder.encode([row])[0].input_ids), sizes


def test_completions_of_paligemma_are_read_causally(folder_of: Any):
    """Its prompt is read in both directions; scored in one pass, a completion is as sampled: token by token."""
    model, processor = loaded(folder_of("paligemma"))
    samples, completion = PromptEncoder(processor, {}).encode(rows("paligemma")), [WORD, WORD + 1, WORD + 2]
    ids, mask = padded(samples, completion)[1:]
    with torch.no_grad():
        whole = model(**model_inputs(samples, ids, mask, completion=3)).logits[:, -3:-1]
        shorter = [model(**model_inputs(samples, ids[:, :-cut], mask[:, :-cut], completion=3 - cut)) for cut in (2, 1)]
        bare = model(**model_inputs(samples, ids[:, :-3], mask[:, :-3], completion=0), use_cache=True)
        step = model(input_ids=ids[:, -3:-2], attention_mask=mask[:, :-2], past_key_values=bare.past_key_values)
    assert torch.allclose(whole, torch.stack([one.logits[:, -1] for one in shorter], dim=1), atol=1e-5)
    assert torch.allclose(whole[:, 0], step.logits[:, -1], atol=1e-5)


def test_paligemma_refuses_a_prompt_without_an_image(folder_of: Any, held_out: Any):
    model, processor = loaded(folder_of("paligemma"))
    with pytest.raises(ValueError, match=r"rows.jsonl:3: no image, and PaliGemmaProcessor needs one in every prompt"):
        evaluate(model, processor, held_out(""), max_completion_length=3)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl", "smolvlm", "lfm2_vl", "minicpmv4_6"])
def test_a_model_trains_on_images_of_fewer_tokens(family: str, folder_of: Any, tmp_path: Path):
    """Some models put tiles together themselves: they have to know of other resolutions than they came with."""
    trainer = build(folder_of(family), tmp_path, rows(family), max_image_tokens=10, max_steps=1)
    trainer.train()
    ids = trainer.encoder.encode([{"prompt": user("what"), "images": [picture(0, 500, 400)]}])[0].input_ids
    mark = trainer.processing_class.tokenizer.convert_tokens_to_ids(facts_of(family).placeholders[0])
    assert 0 < ids.count(mark) <= 10
    assert trainer.state.log_history[0]["grad_norm"] > 0
