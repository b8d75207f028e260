"""Every family with a video processor trains on videos beside images and text; the others refuse them by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.families import FAMILIES_TINY, facts_of
from tests.support.training import picture, user
from tests.trainers.test_families import (
    WORD,
    alternating_reward,
    arguments,
    build,
    largest_difference,
    loaded,
    padded,
    tower_state,
)
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.video import patch_glm4v_placeholder_mask
from vlm_grpo.trainers.config import VLMRLOOConfig
from vlm_grpo.trainers.logprobs import model_inputs, with_dummy_row
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

WITH_VIDEO = [name for name in FAMILIES_TINY if facts_of(name).has_video and name != "smolvlm"]  # its template has none
WITHOUT_VIDEO = ["llava_clip", "gemma3", "mistral3", "idefics3", "lfm2_vl", "deepseek_vl", "kimi_k25", "smolvlm"]
each_video_family = pytest.mark.parametrize("family", WITH_VIDEO)


def clip(seed: int, count: int = 4) -> np.ndarray:
    """Frames of 56 x 56 pixels, (T, H, W, 3)."""
    return np.stack([np.asarray(picture(seed + number, 56, 56)) for number in range(count)])


def rows(family: str) -> list[dict[str, Any]]:
    """A video, an image, text; and, where the family can, a video and an image in one prompt."""
    one_of_each = [
        {"prompt": user("what happens"), "videos": [clip(0)], "images": []},
        {"prompt": user("what color"), "videos": [], "images": [picture(0)]},
        {"prompt": user("red"), "videos": [], "images": []},
    ]
    both = {"prompt": user("are they alike"), "videos": [clip(5)], "images": [picture(1)]}
    return one_of_each if family == "smolvlm2" else [*one_of_each, both]


def saved_rows(family: str, folder: Path) -> list[dict[str, Any]]:
    """The same with frames as files, which a data set can hold."""
    return [
        {**row, "videos": [save_frames(video, folder / str(number)) for video in row["videos"]] or None}
        for number, row in enumerate(rows(family))
    ]


def save_frames(video: np.ndarray, folder: Path) -> list[str]:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number}.png") for number in range(len(video))]
    for frame, path in zip(video, paths, strict=True):
        Image.fromarray(frame).save(path)
    return paths


def plain_inputs(processor: Any, row: dict[str, Any]) -> dict[str, Tensor]:
    """A row by the processor alone, told that the frames are two a second."""
    media = [("video", video) for video in row["videos"]] + [("image", image) for image in row["images"]]
    blocks = [{"type": kind, kind: value} for kind, value in media]
    facts = [
        {"total_num_frames": len(video), "fps": 2.0, "frames_indices": list(range(len(video)))}
        for video in row["videos"]
    ]
    options = {"processor_kwargs": {"videos_kwargs": {"do_sample_frames": False, "video_metadata": [facts]}}}
    return processor.apply_chat_template(
        [user([*blocks, {"type": "text", "text": row["prompt"][0]["content"]}])],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **(options if facts else {}),
    )


@each_video_family
def test_a_mixed_batch_scores_each_row_as_if_it_were_alone(family: str, folder_of: Any):
    """The single rows of one kind of media are scored by a model that nothing was done to."""
    stock, processor = loaded(folder_of(family))
    model, _ = loaded(folder_of(family))
    patch_glm4v_placeholder_mask(model)
    encoder = PromptEncoder(processor, {})
    data = rows(family)
    batch = padded(encoder.encode(data), [WORD])
    text = padded(encoder.encode([data[2]]), [WORD])
    for kind in ("image", "video"):
        text = with_dummy_row(text, encoder.dummy_prompt(kind), completion=1)
    with torch.no_grad():
        together = model(**model_inputs(*batch, completion=1)).logits[:, -2]  # (rows, vocabulary)
        beside_blanks = model(**model_inputs(*text, completion=1)).logits[0, -2]
        alone = [(stock if number < 3 else model)(**plain_inputs(processor, row)) for number, row in enumerate(data)]
        reversed_frames = {**data[0], "videos": [data[0]["videos"][0][::-1].copy()]}
        other = stock(**plain_inputs(processor, reversed_frames)).logits[:, -1]
    assert torch.allclose(together, torch.cat([output.logits[:, -1] for output in alone]), atol=1e-5)
    assert torch.allclose(beside_blanks, together[2], atol=1e-5)
    assert (other - together[0]).abs().max() > 1e-5  # the order of the frames is seen


@each_video_family
def test_videos_alone_move_the_tower(family: str, folder_of: Any, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(folder_of(family))
    videos = [save_frames(clip(seed), tmp_path / str(seed)) for seed in (0, 5, 10)]
    data = [{"prompt": user("what happens" * (n + 1)), "videos": [video]} for n, video in enumerate(videos)]
    trainer = build(folder_of(family), tmp_path, data, max_steps=1)
    trainer.train()
    assert largest_difference(tower_state(trainer.model), tower_state(before)) > 1e-4


@each_video_family
def test_videos_train_beside_images_and_text_and_resume(family: str, folder_of: Any, tmp_path: Path):
    data = Dataset.from_list(saved_rows(family, tmp_path))

    def trainer(**options: Any) -> Any:
        batch = {"per_device_train_batch_size": 2 * len(data)}
        given = arguments(tmp_path, num_iterations=2, beta=0.1, **batch, **options)
        return VLMRLOOTrainer(str(folder_of(family)), alternating_reward, VLMRLOOConfig(**given), train_dataset=data)

    whole, resumed = trainer(save_strategy="steps", save_steps=1), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert largest_difference(resumed.model.state_dict(), whole.model.state_dict()) == 0


@pytest.mark.parametrize("family", WITHOUT_VIDEO)
def test_a_family_without_videos_refuses_them_by_line(family: str, folder_of: Any):
    """Their processors leave them out in silence: the model would answer without having seen anything."""
    encoder = PromptEncoder(AutoProcessor.from_pretrained(folder_of(family)), {})
    row = {"prompt": user("what"), "videos": [clip(0)], "where": "a.jsonl:3"}
    with pytest.raises(ValueError, match=r"a\.jsonl:3: \w+Processor cannot read videos; give frames as images"):
        encoder.encode([row])


def test_smolvlm_refuses_an_image_and_a_video_in_one_prompt(folder_of: Any):
    encoder = PromptEncoder(AutoProcessor.from_pretrained(folder_of("smolvlm2")), {})
    row = {"prompt": user("what"), "videos": [clip(0)], "images": [picture(0)], "where": "a.jsonl:3"}
    with pytest.raises(ValueError, match=r"a\.jsonl:3: SmolVLMProcessor cannot read images and a video in one prompt"):
        encoder.encode([row])


def test_llava_onevision_refuses_videos_of_unequal_length(folder_of: Any):
    _, processor = loaded(folder_of("llava_onevision"))
    samples = PromptEncoder(processor, {}).encode([{"prompt": user("a"), "videos": [clip(0, n)]} for n in (4, 6)])
    with pytest.raises(ValueError, match=r"same number of frames in this model family, got \[4, 6\]"):
        model_inputs(*padded(samples, []), completion=0)


def test_stock_glm4v_cannot_take_images_and_videos_in_one_batch(folder_of: Any):
    model, processor = loaded(folder_of("glm4v"))
    batch = padded(PromptEncoder(processor, {}).encode(rows("glm4v")), [])
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(**model_inputs(*batch, completion=0))
    patch_glm4v_placeholder_mask(model)
    model(**model_inputs(*batch, completion=0))
    batch.input_ids[batch.input_ids == model.config.image_token_id] = WORD
    with pytest.raises(ValueError, match="0 image placeholders for"):
        model(**model_inputs(*batch, completion=0))
