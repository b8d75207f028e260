"""Tiny random models whose layers are not all attention, with the chat templates that their makers publish.

Qwen3.5 mixes gated linear attention with attention, LFM2-VL short convolutions with attention: what a prompt leaves
behind is a state of a fixed size beside keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf
import trl

from tests.support.families import HIDDEN, PIXELS, TOWER, ends, mrope, qwen_tokens, save, text, tokenizer
from vlm_grpo.tiny import build_tiny_qwen


def makers_template(name: str) -> str:
    """Return a chat template of those that TRL ships."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def save_qwen3_5(folder: Path, chat_template: str = "qwen3_5_nothink") -> None:
    """Write a Qwen3.5 of two linear and two attention layers."""
    words = build_tiny_qwen()[1].tokenizer
    config = hf.Qwen3_5Config(
        text_config=text(
            words,
            head_dim=16,
            num_hidden_layers=4,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            **mrope([4, 2, 2], mrope_interleaved=True, partial_rotary_factor=1.0),
        ),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
        },
        **qwen_tokens(words),
    )
    made = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=PIXELS, patch_size=16),
        tokenizer=words,
        video_processor=hf.Qwen3VLVideoProcessor(size=PIXELS),
        chat_template=makers_template(chat_template),
    )
    save(folder, hf.Qwen3_5ForConditionalGeneration, config, made)


def save_lfm2_vl(folder: Path) -> None:
    """Write an LFM2-VL of two convolution and two attention layers, with small tiles."""
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    words = tokenizer(
        *tiles,
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    config = hf.Lfm2VlConfig(
        text_config={
            "model_type": "lfm2",
            **text(words, num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2),
            "block_auto_adjust_ff_dim": False,
        },
        vision_config={
            "model_type": "siglip2_vision_model",
            "patch_size": 16,
            "num_patches": 16,
            "intermediate_size": 2 * HIDDEN,
            "vision_use_head": False,
            **TOWER,
        },
        image_token_id=words.image_token_id,
        projector_hidden_size=HIDDEN,
        **ends(words),
    )
    made = hf.Lfm2VlProcessor(
        image_processor=hf.Lfm2VlImageProcessor(tile_size=64, max_tiles=4, min_image_tokens=1, max_image_tokens=4),
        tokenizer=words,
        chat_template=makers_template("lfm2_2_5_vl"),
    )
    save(folder, hf.Lfm2VlForConditionalGeneration, config, made)


HYBRIDS: dict[str, Callable[[Path], Any]] = {"qwen3_5": save_qwen3_5, "lfm2_vl": save_lfm2_vl}
