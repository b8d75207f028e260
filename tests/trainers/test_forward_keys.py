"""Every key that a processor returns reaches the model in the loss; stock TRL 1.16 has a fixed list of keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLProcessor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.support.families import save_llava_onevision
from tests.support.training import picture, user
from tests.trainers.test_families import alternating_reward, arguments
from tests.trainers.test_mixed import OURS

NAMES = ["grpo", "rloo"]
WIDTHS = [56.0, 112.0]  # of the two images


class WidthBody(Qwen2_5_VLModel):
    """Wants to know how wide the images were, and keeps what it was told while gradients are taken."""

    told: list[Any]

    def forward(self, *args: Any, image_widths: torch.Tensor | None = None, **options: Any) -> Any:
        if torch.is_grad_enabled():
            self.told.append(None if image_widths is None else image_widths.tolist())
        return super().forward(*args, **options)


class WidthModel(Qwen2_5_VLForConditionalGeneration):
    """A family that needs a key of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.__class__ = WidthBody
        self.model.told = []

    def forward(self, *args: Any, image_widths: torch.Tensor | None = None, **options: Any) -> Any:
        return super().forward(*args, image_widths=image_widths, **options)


def with_parameter(function: Callable, name: str) -> inspect.Signature:
    """The signature with one more keyword; generation reads from it what a model takes."""
    *known, options = inspect.signature(function).parameters.values()
    added = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
    return inspect.Signature([*known, added, options])


WidthModel.forward.__signature__ = with_parameter(Qwen2_5_VLForConditionalGeneration.forward, "image_widths")


class WidthProcessor(Qwen2_5_VLProcessor):
    """Returns the key: the width of each image in pixels."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        output = super().__call__(images=images, text=text, **options)
        if images:
            flat = [image for part in images for image in (part if isinstance(part, list) else [part])]
            output["image_widths"] = torch.tensor([float(image.width) for image in flat])
        return output


def rows() -> Dataset:
    data = [
        {"prompt": user("what color" * (n + 1)), "images": [picture(n, int(width))]} for n, width in enumerate(WIDTHS)
    ]
    return Dataset.from_list(data)


def told_in_the_loss(kind: tuple, model: Path, folder: Path) -> list[Any]:
    trainer, config = kind
    processor = AutoProcessor.from_pretrained(model)
    processor.__class__ = WidthProcessor
    args = config(**arguments(folder, per_device_train_batch_size=4, max_steps=1, shuffle_dataset=False))
    run = trainer(
        WidthModel.from_pretrained(model),
        alternating_reward,
        args,
        train_dataset=rows(),
        processing_class=processor,
    )
    run.train()
    return run.model.model.told


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_a_key_that_no_list_names_reaches_the_loss(kind: tuple, tiny_model: Path, tmp_path: Path):
    """Once for each prompt or for each of its completions, and in any order."""
    told = told_in_the_loss(kind, tiny_model, tmp_path)
    assert told and all(widths is not None and set(widths) == set(WIDTHS) for widths in told)


def test_stock_grpo_loses_such_a_key_in_silence(tiny_model: Path, tmp_path: Path):
    assert told_in_the_loss((GRPOTrainer, GRPOConfig), tiny_model, tmp_path) == [None]


def test_stock_rloo_fails_on_such_a_key(tiny_model: Path, tmp_path: Path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_widths'"):
        told_in_the_loss((RLOOTrainer, RLOOConfig), tiny_model, tmp_path)


def train_onevision(kind: tuple, folder: Path) -> None:
    """Two images in each prompt: the model needs `batch_num_images` to know that they are not cut into tiles."""
    trainer, config = kind
    save_llava_onevision(folder / "model")
    data = [{"prompt": user("what" * (n + 1)), "images": [picture(2 * n), picture(2 * n + 1)]} for n in range(2)]
    args = config(**arguments(folder, per_device_train_batch_size=4, max_steps=1))
    trainer(str(folder / "model"), alternating_reward, args, train_dataset=Dataset.from_list(data)).train()


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_a_real_family_with_such_a_key_trains(kind: tuple, tmp_path: Path):
    train_onevision(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        pytest.param((GRPOTrainer, GRPOConfig), (RuntimeError, "split_with_sizes"), id="grpo"),
        pytest.param((RLOOTrainer, RLOOConfig), (TypeError, "argument 'batch_num_images'"), id="rloo"),
    ],
)
def test_stock_cannot_train_a_real_family_with_such_a_key(kind: tuple, error: tuple, tmp_path: Path):
    with pytest.raises(error[0], match=error[1]):
        train_onevision(kind, tmp_path)
