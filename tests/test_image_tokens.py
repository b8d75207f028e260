"""Limits of image tokens and right boxes in every family; the numbers of docs/families.md are counted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoProcessor

from docs.gen_families import EXAMPLES
from tests.support.families import FAMILIES_TINY, MODEL_TYPES
from tests.support.hub_sizes import SETTINGS, hub_sized
from tests.support.training import picture, user
from vlm_grpo.answer_space import answer_space
from vlm_grpo.cli.model_check import cost_notice
from vlm_grpo.image_tokens import count_image_tokens, limit_image_tokens
from vlm_grpo.model_utils import set_pixel_limits
from vlm_grpo.rewards import score
from vlm_grpo.rollouts.encoder import PromptEncoder

SCREEN = (1600, 1200)
OTHERS = ((1111, 777), (97, 640), (2500, 333), (64, 64), (1280, 720))  # no side 8 times the other
# Tiny families whose images cannot have so few tokens, with the fewest that they can have.
LEAST = {
    **dict.fromkeys(("llava_onevision", "llava_next"), 10),
    **dict.fromkeys(("llava_clip", "llava_siglip", "llava_dinov2", "gemma3", "paligemma", "deepseek_vl"), 4),
    "gemma4": 66,
    "deepseek_vl_hybrid": 16,
}


def processor_and_config(folder: Path) -> tuple[Any, Any]:
    return AutoProcessor.from_pretrained(folder), AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_no_image_has_more_tokens_than_the_limit(family: str, folder_of: Any):
    processor, config = processor_and_config(folder_of(family))
    limit = max(LEAST.get(family, 0), 8)
    limit_image_tokens(processor, config, limit)
    counts = [count_image_tokens(processor, config.model_type, size) for size in OTHERS]
    assert min(counts) > 0 and max(counts) <= limit


@pytest.mark.parametrize("family", LEAST)
def test_too_small_a_limit_is_refused_with_the_least(family: str, folder_of: Any):
    processor, config = processor_and_config(folder_of(family))
    with pytest.raises(ValueError, match=rf"--max_image_tokens 3 is too low for \w+: .* use at least {LEAST[family]}$"):
        limit_image_tokens(processor, config, 3)


def test_a_limited_checkpoint_is_saved_with_its_limit(folder_of: Any, tmp_path: Path):
    """LLaVA-NeXT's model puts tiles together: it has to know the resolutions too."""
    for family in ("smolvlm", "gemma4", "llava_next"):
        processor, config = processor_and_config(folder_of(family))
        limit_image_tokens(processor, config, 66 if family == "gemma4" else 10)
        processor.save_pretrained(tmp_path / family)
        config.save_pretrained(tmp_path / family)
        again, after = processor_and_config(tmp_path / family)
        count = count_image_tokens(again, config.model_type, SCREEN)
        assert count == count_image_tokens(processor, config.model_type, SCREEN)
    assert after.image_grid_pinpoints == again.image_processor.image_grid_pinpoints == [[28, 28]]


@pytest.mark.extended
@pytest.mark.parametrize("family", SETTINGS)
def test_the_numbers_of_the_page_are_those_of_hub_sized_processors(family: str, folder_of: Any):
    model_type = MODEL_TYPES.get(family, family)
    row = [count_image_tokens(hub_sized(folder_of(family), family), model_type, SCREEN)]
    for limit in (1024, 256):
        processor, config = hub_sized(folder_of(family), family), AutoConfig.from_pretrained(folder_of(family))
        try:
            limit_image_tokens(processor, config, limit)
            row.append(count_image_tokens(processor, model_type, SCREEN))
        except ValueError as error:
            row.append(str(error).rpartition("take ")[2])
    assert tuple(row) == EXAMPLES[model_type]


def test_the_page_has_an_example_of_every_family():
    assert {MODEL_TYPES.get(name, name) for name in SETTINGS} == set(EXAMPLES)
    assert set(EXAMPLES) == {MODEL_TYPES.get(name, name) for name in FAMILIES_TINY}


def test_glm_counts_the_pixels_of_an_image_not_of_its_doubled_frame(folder_of: Any):
    """28 x 28 pixels are a token: 100 tokens' worth of pixels are 100 tokens, not 50."""
    processor = hub_sized(folder_of("glm4v"), "glm4v")
    set_pixel_limits(processor, None, 100 * 28 * 28)
    assert count_image_tokens(processor, "glm4v", (1000, 1000)) == 100


def test_an_image_of_very_many_tokens_is_told_of_with_the_flag(folder_of: Any):
    processor = hub_sized(folder_of("qwen2_5_vl"), "qwen2_5_vl")
    rows = [{"images": [picture(0)]}, {"images": [picture(1, 4000, 3000)]}, {"images": None}]
    assert cost_notice(processor, "qwen2_5_vl", rows) == (
        "an image of 4000 x 3000 pixels in the first rows has 15,301 tokens, in every completion's prompt; set "
        "--max_pixels or --max_image_tokens, such as --max_image_tokens 1024"
    )
    assert cost_notice(processor, "qwen2_5_vl", rows[:1]) is None and cost_notice(processor, "qwen2_5_vl", []) is None


# (400, 300) to (800, 600) of 1600 x 1200 pixels, as each space writes it.
RIGHT = {
    "thousand": "[250, 250, 500, 500]",
    "unit": "[0.25, 0.25, 0.5, 0.5]",
    "original": "[400, 300, 800, 600]",
}


# As the makers publish them; the sources are in the table.
SPACES = {
    "thousand": {
        *("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5_think", "qwen3_5_nothink", "qwen3_5_moe", "qwen3_omni"),
        *("internvl", "glm4v", "glm4v_moe", "glm46v", "paligemma"),
    },
    "unit": {"llava_clip", "llava_siglip", "llava_dinov2", "llava_onevision", "lfm2_vl"},
    "resized": {"qwen2_5_vl"},
}


@pytest.mark.parametrize("family", FAMILIES_TINY)
def test_a_right_box_in_the_familys_space_has_iou_1(family: str, folder_of: Any):
    encoder = PromptEncoder(AutoProcessor.from_pretrained(folder_of(family)), {})
    (sample,) = encoder.encode([{"prompt": user("where"), "images": [picture(0, *SCREEN)]}])
    facts, space = encoder.image_facts(sample), answer_space(MODEL_TYPES.get(family, family), None)
    assert space == next((name for name, families in SPACES.items() if family in families), "original")
    if space == "resized":
        ((width, height),) = facts["processed_sizes"]
        answer = str([width / 4, height / 4, width / 2, height / 2])
    else:
        answer = RIGHT[space]
    columns = {"answer": [400, 300, 800, 600], "task": "rec", "answer_space": space, **facts}
    assert score("iou", f"<think>a</think><answer>{answer}</answer>", **columns) == pytest.approx(1)
