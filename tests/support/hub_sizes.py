"""The image processors of the tiny families with the settings that checkpoints on the hub come with.

They are transformers' defaults of the family, or what is known of the first checkpoint that `vlm-grpo families` names;
the checkpoints' own files were not at hand. Ovis2's number of tiles is a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor

PATCH_14 = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
PATCH_16 = {"shortest_edge": 256 * 256, "longest_edge": 16384 * 32 * 32}
GLM = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


ONEVISION = [[384 * height, 384 * width] for height in range(1, 7) for width in range(1, 7)]
NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# Family -> settings of its image processor, settings of its processor.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ({"size": PATCH_14}, {}),
    "qwen2_5_vl": ({"size": PATCH_14}, {}),
    **{name: ({"size": PATCH_16}, {}) for name in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5_think", "qwen3_5_moe")},
    "qwen3_omni": ({"size": PATCH_16}, {}),
    "internvl": ({"size": square(448), "max_patches": 12}, {"image_seq_length": 256}),
    **{name: ({"size": GLM}, {}) for name in ("glm4v", "glm4v_moe", "glm46v")},
    "gemma3": (
        {"size": square(896)},
        {"full_image_sequence": f"\n\n<start_of_image>{'<image_soft_token>' * 256}<end_of_image>\n\n"},
    ),
    "gemma4": ({"max_soft_tokens": 280}, {}),
    "mistral3": ({"size": {"longest_edge": 1540}}, {}),
    "smolvlm": ({"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}, {"image_seq_len": 64}),
    "idefics3": ({"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}, {"image_seq_len": 169}),
    "llava_clip": ({"size": {"shortest_edge": 336}, "crop_size": square(336)}, {}),
    "llava_next": (
        {"size": {"shortest_edge": 336}, "crop_size": square(336), "image_grid_pinpoints": NEXT},
        {},
    ),
    "llava_onevision": ({"size": square(384), "image_grid_pinpoints": ONEVISION}, {"num_image_tokens": 729}),
    "lfm2_vl": ({"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512, "max_tiles": 10}, {}),
    "paligemma": ({"size": square(224)}, {"image_seq_length": 256}),
    **{name: ({"scale_resolution": 448, "max_slice_nums": 9}, {}) for name in ("minicpmv4_6", "minicpmv4_7")},
    "kimi_k25": ({"max_patches": 16384}, {}),
    "ovis2": ({"size": square(448), "max_patches": 9}, {"image_seq_length": 256}),
    "deepseek_vl": ({"size": square(384)}, {"num_image_tokens": 576}),
    "deepseek_vl_hybrid": ({"size": square(384), "high_res_size": square(1024)}, {"num_image_tokens": 576}),
}


def hub_sized(folder: Path, family: str) -> Any:
    """A family's processor with the settings of the hub and the tiny tokenizer."""
    processor = AutoProcessor.from_pretrained(folder)
    of_images, of_processor = SETTINGS[family]
    for name, value in of_images.items():
        is_size = isinstance(value, dict)
        setattr(processor.image_processor, name, type(processor.image_processor.size)(**value) if is_size else value)
    for name, value in of_processor.items():
        setattr(processor, name, value)
    return processor
