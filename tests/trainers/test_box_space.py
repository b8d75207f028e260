"""A box from a file whose image is stored rotated, through a real processor's resizing, to the reward and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from tests.data.files import turns, write_jsonl
from vlm_grpo.boxes import Box, convert
from vlm_grpo.data import load_dataset
from vlm_grpo.model_utils import set_pixel_limits
from vlm_grpo.rewards import score
from vlm_grpo.rollouts.encoder import PromptEncoder

BOX = Box(168, 56, 448, 140)  # on the upright image of 560 x 252
UPRIGHT_TO_STORED = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def write_photograph(path: Path, orientation: int) -> None:
    """White on black, stored as a camera of this EXIF orientation would."""
    upright = np.zeros((252, 560, 3), dtype=np.uint8)
    upright[int(BOX.y1) : int(BOX.y2), int(BOX.x1) : int(BOX.x2)] = 255
    stored = Image.fromarray(upright)
    if UPRIGHT_TO_STORED[orientation] is not None:
        stored = stored.transpose(UPRIGHT_TO_STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)


def seen_box(sample: object, processor: object) -> Box:
    """Where the model sees white: the patches that the processor returned, put together to an image again."""
    _, rows, columns = sample.visual["image_grid_thw"][0].tolist()
    settings = processor.image_processor
    patch, merge = settings.patch_size, settings.merge_size
    patches = sample.visual["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, 3, settings.temporal_patch_size, patch, patch
    )
    image = patches[:, :, :, :, 0, 0].permute(0, 2, 4, 1, 3, 5).reshape(rows * patch, columns * patch)
    bright = image > (image.max() + image.min()) / 2
    ys, xs = bright.any(dim=1).nonzero().flatten(), bright.any(dim=0).nonzero().flatten()
    return Box(xs[0].item(), ys[0].item(), xs[-1].item() + 1, ys[-1].item() + 1)


@pytest.mark.parametrize("orientation", UPRIGHT_TO_STORED)
@pytest.mark.parametrize("max_pixels", [None, 112 * 112])
def test_the_box_is_where_the_model_sees_the_object(
    orientation: int, max_pixels: int | None, tiny_model: Path, tmp_path: Path
):
    write_photograph(tmp_path / "a.png", orientation)
    row = {"image": "a.png", "conversations": turns("<image>Where?", list(BOX)), "task": "rec"}
    (data,) = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(tmp_path))
    processor = AutoProcessor.from_pretrained(tiny_model)
    set_pixel_limits(processor, None, max_pixels)
    encoder = PromptEncoder(processor, {})
    (sample,) = encoder.encode([data])
    facts = encoder.image_facts(sample)
    assert facts["image_sizes"] == [(560, 252)]
    sizes = (facts["image_sizes"][0], facts["processed_sizes"][0])

    there = convert(BOX, "original", "resized", *sizes)
    assert seen_box(sample, processor) == pytest.approx(there, abs=1)
    back = convert(Box(*map(round, there)), "resized", "original", *sizes)
    unit = max(whole / resized for whole, resized in zip(*sizes, strict=True))
    assert back == pytest.approx(BOX, abs=unit / 2 + 1e-6)

    answer = f"<think>a</think><answer>{list(there)}</answer>"
    columns = {"answer": data["answer"], "task": "rec", "answer_space": "resized", **facts}
    assert score("iou", answer, **columns) == pytest.approx(1)
    if max_pixels:
        assert score("iou", f"<think>a</think><answer>{list(BOX)}</answer>", **columns) < 0.9
