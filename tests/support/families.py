"""Tiny random models of every supported family, each with its real processor; nothing is downloaded.

A builder writes a folder that `AutoProcessor` and `AutoModelForImageTextToText` read. Widths are small, everything
that decides how images travel (tiles, grids, padding, placeholders, where the tower sits) is as in the hub's models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from vlm_grpo.tiny import END, PAD, START, VISION, build_tiny_qwen, chat_template, save_tiny_qwen

HIDDEN = 32
TOWER = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE, PATCH = 28, 14  # fixed-size towers see 2 x 2 patches
SQUARE_TOWER = {"image_size": SIDE, "patch_size": PATCH, "intermediate_size": 2 * HIDDEN, **TOWER}
PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}  # for families that resize to a range
PLACES = ("".join((VISION[0], VISION[3], VISION[1])), "".join((VISION[0], VISION[4], VISION[1])))


def save(folder: Path, kind: type, config: Any, processor: Any) -> None:
    """Write a randomly initialised model, the same every time, and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        if isinstance(config, hf.Gemma3Config):  # starts at zero: the model would be blind, its tower without gradient
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tokenizer(*special: str, **named: str) -> Any:
    """The tiny Qwen's tokenizer with more special tokens; `named` ones become its attributes."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=build_tiny_qwen()[1].tokenizer.backend_tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        extra_special_tokens=[START, *special],
        model_specific_special_tokens=named,
    )


def template(image: str, video: str = "") -> str:
    """The tiny Qwen's chat template with other text where an image or a video stands."""
    return chat_template().replace(PLACES[0], image).replace(PLACES[1], video)


def ends(words: Any) -> dict[str, int]:
    return {
        "bos_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def text(words: Any, **options: Any) -> dict[str, Any]:
    """Options of a small language model over the tokenizer's vocabulary."""
    return {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        **ends(words),
        **options,
    }


def mrope(sections: list[int], **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, **options}}


def square(side: int = SIDE) -> dict[str, int]:
    return {"height": side, "width": side}


def save_qwen2_vl(folder: Path) -> None:
    processor = build_tiny_qwen()[1]
    words = processor.tokenizer
    config = hf.Qwen2VLConfig(
        text_config=text(words, **mrope([2, 3, 3])),
        vision_config={"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2},
        **qwen_tokens(words),
    )
    made = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=PIXELS),
        tokenizer=words,
        video_processor=hf.Qwen2VLVideoProcessor(size=PIXELS),
        chat_template=chat_template(),
    )
    save(folder, hf.Qwen2VLForConditionalGeneration, config, made)


def qwen_tokens(words: Any) -> dict[str, int]:
    names = ("vision_start", "vision_end", None, "image", "video")
    token = words.convert_tokens_to_ids
    ids = {f"{name}_token_id": token(mark) for name, mark in zip(names, VISION, strict=True) if name}
    return {**ids, **ends(words), "tie_word_embeddings": True}


def save_qwen3_vl(folder: Path) -> None:
    words = build_tiny_qwen()[1].tokenizer
    config = hf.Qwen3VLConfig(
        text_config=text(words, head_dim=16, **mrope([4, 2, 2], mrope_interleaved=True)),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **qwen_tokens(words),
    )
    made = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=PIXELS, patch_size=16),
        tokenizer=words,
        video_processor=hf.Qwen3VLVideoProcessor(size=PIXELS),
        chat_template=chat_template(),
    )
    save(folder, hf.Qwen3VLForConditionalGeneration, config, made)


# Tower -> (model_type, its image processor, tokens beside the patches, options). The hub's LLaVAs take the
# second-last layer without the class token of CLIP and DINOv2; SigLIP has none.
LLAVA_TOWERS: dict[str, tuple[str, Callable[..., Any], int, dict[str, Any]]] = {
    "clip": ("clip_vision_model", hf.CLIPImageProcessor, 1, {"intermediate_size": 2 * HIDDEN}),
    "siglip": (
        "siglip_vision_model",
        hf.SiglipImageProcessor,
        0,
        {"intermediate_size": 2 * HIDDEN, "vision_use_head": False},
    ),
    "dinov2": ("dinov2", hf.BitImageProcessor, 1, {"mlp_ratio": 2}),
}


def save_llava(folder: Path, tower: str) -> None:
    model_type, image_processor, extra, options = LLAVA_TOWERS[tower]
    words = tokenizer(image_token="<image>")
    strategy = "default" if extra else "full"
    config = hf.LlavaConfig(
        text_config={"model_type": "llama", **text(words)},
        vision_config={"model_type": model_type, "image_size": SIDE, "patch_size": PATCH, **TOWER, **options},
        image_token_index=words.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy=strategy,
        **ends(words),
    )
    sizes = {"size": square()} if tower == "siglip" else {"size": {"shortest_edge": SIDE}, "crop_size": square()}
    made = hf.LlavaProcessor(
        image_processor=image_processor(**sizes),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=template("<image>"),
    )
    save(folder, hf.LlavaForConditionalGeneration, config, made)


def save_llava_onevision(folder: Path) -> None:
    words = tokenizer(image_token="<image>", video_token="<video>")
    grid = [[height, width] for height in (SIDE, 2 * SIDE) for width in (SIDE, 2 * SIDE)]
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text(words)},
        vision_config={**siglip(), "vision_use_head": False},
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=grid,
        **ends(words),
    )
    made = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=square(), image_grid_pinpoints=grid),
        tokenizer=words,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=square()),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template("<image>", "<video>"),
    )
    save(folder, hf.LlavaOnevisionForConditionalGeneration, config, made)


def siglip() -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **SQUARE_TOWER}


def save_internvl(folder: Path) -> None:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **text(words)},
        vision_config=SQUARE_TOWER,
        image_token_id=words.context_image_token_id,
        image_seq_length=1,  # 2 x 2 patches, halved in both directions
        **ends(words),
    )
    made = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(), max_patches=4),
        tokenizer=words,
        video_processor=hf.InternVLVideoProcessor(size=square()),
        image_seq_length=1,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )
    save(folder, hf.InternVLForConditionalGeneration, config, made)


def save_smolvlm(folder: Path) -> None:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    words = tokenizer(
        *tiles,
        "<global-img>",
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        end_of_utterance_token="<end_of_utterance>",
        video_token="<video>",
    )
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", **text(words)},
        vision_config=SQUARE_TOWER,
        image_token_id=words.image_token_id,
        scale_factor=2,
        **ends(words),
    )
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    made = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**sizes),
        tokenizer=words,
        video_processor=hf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=1,
        chat_template=template("<image>", "<video>"),
    )
    save(folder, hf.SmolVLMForConditionalGeneration, config, made)


def save_gemma3(folder: Path) -> None:
    words = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    config = hf.Gemma3Config(
        text_config=text(words, head_dim=16, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
        vision_config={**siglip(), "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
        **ends(words),
    )
    made = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=square()),
        tokenizer=words,
        image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )
    save(folder, hf.Gemma3ForConditionalGeneration, config, made)


GLM_MARKS = {
    "image_start": "<|begin_of_image|>",
    "image_end": "<|end_of_image|>",
    "video_start": "<|begin_of_video|>",
    "video_end": "<|end_of_video|>",
    "image": "<|image|>",
    "video": "<|video|>",
}


def save_glm4v(folder: Path) -> None:
    words = tokenizer(*GLM_MARKS.values())
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(mark) for name, mark in GLM_MARKS.items()}
    config = hf.Glm4vConfig(
        text_config=text(words, **mrope([2, 1, 1], partial_rotary_factor=0.5)),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "image_size": 112,
        },
        **ids,
        **ends(words),
    )
    made = hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(size=PIXELS),
        tokenizer=words,
        video_processor=hf.Glm4vVideoProcessor(size=PIXELS),
        chat_template=template(*("".join(marks) for marks in (glm_span("image"), glm_span("video")))),
    )
    save(folder, hf.Glm4vForConditionalGeneration, config, made)


def glm_span(kind: str) -> tuple[str, str, str]:
    return GLM_MARKS[f"{kind}_start"], GLM_MARKS[kind], GLM_MARKS[f"{kind}_end"]


def save_mistral3(folder: Path) -> None:
    words = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    config = hf.Mistral3Config(
        text_config={"model_type": "mistral", **text(words, head_dim=16, sliding_window=None)},
        vision_config={
            "model_type": "pixtral",
            "image_size": 112,
            "patch_size": PATCH,
            "intermediate_size": 2 * HIDDEN,
            "head_dim": 16,
            **TOWER,
        },
        image_token_index=words.image_token_id,
        **ends(words),
    )
    made = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=PATCH),
        tokenizer=words,
        patch_size=PATCH,
        spatial_merge_size=2,
        chat_template=template("[IMG]"),
    )
    save(folder, hf.Mistral3ForConditionalGeneration, config, made)


FAMILIES_TINY: dict[str, Callable[[Path], Any]] = {
    "qwen2_vl": save_qwen2_vl,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_qwen3_vl,
    "llava_clip": partial(save_llava, tower="clip"),
    "llava_siglip": partial(save_llava, tower="siglip"),
    "llava_dinov2": partial(save_llava, tower="dinov2"),
    "llava_onevision": save_llava_onevision,
    "internvl": save_internvl,
    "smolvlm": save_smolvlm,
    "gemma3": save_gemma3,
    "glm4v": save_glm4v,
    "mistral3": save_mistral3,
}
