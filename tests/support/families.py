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
from safetensors.torch import load_file, save_file

from tests.support.templates import published
from vlm_grpo.families import FAMILIES, Family
from vlm_grpo.tiny import END, PAD, START, VISION, build_tiny_qwen, chat_template

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
        chat_template=published("qwen2_5_vl"),
    )
    save(folder, hf.Qwen2VLForConditionalGeneration, config, made)


def qwen_tokens(words: Any) -> dict[str, int]:
    names = ("vision_start", "vision_end", None, "image", "video")
    token = words.convert_tokens_to_ids
    ids = {f"{name}_token_id": token(mark) for name, mark in zip(names, VISION, strict=True) if name}
    return {**ids, **ends(words), "tie_word_embeddings": True}


def save_qwen2_5_vl(folder: Path) -> None:
    model, processor = build_tiny_qwen()
    processor.chat_template = published("qwen2_5_vl")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_qwen3_vl(folder: Path) -> None:
    words = build_tiny_qwen()[1].tokenizer
    config = hf.Qwen3VLConfig(
        text_config=text(words, head_dim=16, **mrope([4, 2, 2], mrope_interleaved=True)),
        vision_config=qwen_vision(deepstack_visual_indexes=[0]),
        **qwen_tokens(words),
    )
    save(folder, hf.Qwen3VLForConditionalGeneration, config, qwen3_processor(words, "qwen3_vl"))


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


def save_smolvlm(folder: Path, written: str) -> None:
    """`written` is the chat template: SmolVLM's has no videos, that of SmolVLM2 has."""
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
        chat_template=written,
    )
    save(folder, hf.SmolVLMForConditionalGeneration, config, made)


def save_gemma3(folder: Path) -> None:
    words = tokenizer(
        "<start_of_turn>", "<end_of_turn>",
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>", bos_token="<bos>",
    )  # fmt: skip
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
        chat_template=published("gemma3"),
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


def qwen_vision(**options: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,
        **options,
    }


def experts(**options: Any) -> dict[str, Any]:
    return {"moe_intermediate_size": HIDDEN, "num_experts": 4, "num_experts_per_tok": 2, **options}


def qwen3_processor(words: Any, template_name: str) -> Any:
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=PIXELS, patch_size=16),
        tokenizer=words,
        video_processor=hf.Qwen3VLVideoProcessor(size=PIXELS),
        chat_template=published(template_name),
    )


def save_qwen3_vl_moe(folder: Path) -> None:
    words = build_tiny_qwen()[1].tokenizer
    config = hf.Qwen3VLMoeConfig(
        text_config=text(words, head_dim=16, **experts(), **mrope([4, 2, 2], mrope_interleaved=True)),
        vision_config=qwen_vision(deepstack_visual_indexes=[0]),
        **qwen_tokens(words),
    )
    save(folder, hf.Qwen3VLMoeForConditionalGeneration, config, qwen3_processor(words, "qwen3_vl"))


def hybrid(words: Any, **options: Any) -> dict[str, Any]:
    """A layer of linear attention before one of full attention."""
    return text(
        words,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        **mrope([1, 1, 0], mrope_interleaved=True, partial_rotary_factor=0.25),
        **options,
    )


def save_qwen3_5(folder: Path, template_name: str) -> None:
    words = build_tiny_qwen()[1].tokenizer
    config = hf.Qwen3_5Config(text_config=hybrid(words), vision_config=qwen_vision(), **qwen_tokens(words))
    save(folder, hf.Qwen3_5ForConditionalGeneration, config, qwen3_processor(words, template_name))


def save_qwen3_5_moe(folder: Path) -> None:
    words = build_tiny_qwen()[1].tokenizer
    language = hybrid(words, **experts(shared_expert_intermediate_size=HIDDEN))
    config = hf.Qwen3_5MoeConfig(text_config=language, vision_config=qwen_vision(), **qwen_tokens(words))
    save(folder, hf.Qwen3_5MoeForConditionalGeneration, config, qwen3_processor(words, "qwen3_6"))


def save_qwen3_omni(folder: Path) -> None:
    """The thinker: the part that reads images, videos and sound and writes text."""
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|audio_pad|>"}
    ends_of = {f"{kind}_{end}_token": f"<|{kind}_{end}|>" for kind in ("vision", "audio") for end in ("bos", "eos")}
    words = tokenizer(**marks, **ends_of)
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=text(words, head_dim=16, **experts(), **mrope([4, 2, 2], mrope_interleaved=True)),
        vision_config=qwen_vision(deepstack_visual_indexes=[0]),
        audio_config={
            "d_model": HIDDEN,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": HIDDEN,
            "output_dim": HIDDEN,
            "downsample_hidden_size": 8,
        },
        **{name.replace("token", "token_id"): words.convert_tokens_to_ids(mark) for name, mark in marks.items()},
        audio_start_token_id=words.convert_tokens_to_ids("<|audio_bos|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_bos|>"),
        user_token_id=words.convert_tokens_to_ids("user"),
        **ends(words),
    )
    made = hf.Qwen3OmniMoeProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=PIXELS, patch_size=16),
        video_processor=hf.Qwen2VLVideoProcessor(size=PIXELS, patch_size=16),
        feature_extractor=hf.WhisperFeatureExtractor(),
        tokenizer=words,
        chat_template=template(
            *(f"<|vision_bos|>{marks[f'{kind}_token']}<|vision_eos|>" for kind in ("image", "video"))
        ),
    )
    save(folder, hf.Qwen3OmniMoeThinkerForConditionalGeneration, config, made)


def glm_processor(words: Any, processor: type, images: type, videos: type) -> Any:
    return processor(
        image_processor=images(size=PIXELS),
        tokenizer=words,
        video_processor=videos(size=PIXELS),
        chat_template=template(*("".join(marks) for marks in (glm_span("image"), glm_span("video")))),
    )


GLM_VISION = {
    "depth": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "image_size": 112,
}


def glm_config(kind: type, words: Any, language: dict[str, Any]) -> Any:
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(mark) for name, mark in GLM_MARKS.items()}
    return kind(text_config=language, vision_config=GLM_VISION, **ids, **ends(words))


def save_glm4v(folder: Path) -> None:
    words = tokenizer(*GLM_MARKS.values())
    language = text(words, attention_bias=True, **mrope([2, 1, 1], partial_rotary_factor=0.5))
    config = glm_config(hf.Glm4vConfig, words, language)
    made = glm_processor(words, hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)
    save(folder, hf.Glm4vForConditionalGeneration, config, made)


def save_glm4v_moe(folder: Path) -> None:
    words = tokenizer(*GLM_MARKS.values())
    routed = {"moe_intermediate_size": HIDDEN, "n_routed_experts": 4, "num_experts_per_tok": 2}
    language = text(words, **routed, **mrope([2, 1, 1], partial_rotary_factor=0.5))
    config = glm_config(hf.Glm4vMoeConfig, words, language)
    made = glm_processor(words, hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)
    save(folder, hf.Glm4vMoeForConditionalGeneration, config, made)


def save_glm46v(folder: Path) -> None:
    words = tokenizer(*GLM_MARKS.values())
    language = text(words, attention_bias=True, **mrope([2, 1, 1], partial_rotary_factor=0.5))
    config = glm_config(hf.Glm46VConfig, words, language)
    made = glm_processor(words, hf.Glm46VProcessor, hf.Glm46VImageProcessor, hf.Glm46VVideoProcessor)
    save(folder, hf.Glm46VForConditionalGeneration, config, made)


def save_gemma4(folder: Path) -> None:
    words = tokenizer(
        "<|turn>", "<turn|>", "<|video|>",
        image_token="<|image|>", boi_token="<|image>", eoi_token="<image|>",
        audio_token="<|audio|>", boa_token="<|audio>", eoa_token="<audio|>", bos_token="<bos>",
    )  # fmt: skip
    kinds = ["sliding_attention", "full_attention"]
    config = hf.Gemma4Config(
        text_config=text(
            words,
            head_dim=16,
            global_head_dim=16,
            sliding_window=64,
            layer_types=kinds,
            vocab_size_per_layer_input=len(words),
            hidden_size_per_layer_input=8,
            final_logit_softcapping=30.0,
        ),
        vision_config={**TOWER, "intermediate_size": 2 * HIDDEN, "num_key_value_heads": 2, "head_dim": 16,
                       "position_embedding_size": 64},
        audio_config=None,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        audio_token_id=words.audio_token_id,
        boa_token_id=words.boa_token_id,
        eoa_token_index=words.eoa_token_id,
        **ends(words),
    )  # fmt: skip
    made = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer=words,
        video_processor=hf.Gemma4VideoProcessor(max_soft_tokens=70),
        image_seq_length=70,
        chat_template=published("gemma4_v5"),
    )
    save(folder, hf.Gemma4ForConditionalGeneration, config, made)


def save_idefics3(folder: Path) -> None:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    words = tokenizer(*tiles, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    config = hf.Idefics3Config(
        text_config={"model_type": "llama", **text(words)},
        vision_config=SQUARE_TOWER,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        **ends(words),
    )
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    made = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(**sizes),
        tokenizer=words,
        image_seq_len=1,
        chat_template=published("idefics3"),
    )
    save(folder, hf.Idefics3ForConditionalGeneration, config, made)


def save_llava_next(folder: Path) -> None:
    words = tokenizer(image_token="<image>")
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = hf.LlavaNextConfig(
        text_config={"model_type": "mistral", **text(words, head_dim=16, sliding_window=None)},
        vision_config={"model_type": "clip_vision_model", "intermediate_size": 2 * HIDDEN, "image_size": SIDE,
                       "patch_size": PATCH, **TOWER},
        image_token_index=words.image_token_id,
        image_grid_pinpoints=grid,
        **ends(words),
    )  # fmt: skip
    made = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=square(), image_grid_pinpoints=grid
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=published("llava_next"),
    )
    save(folder, hf.LlavaNextForConditionalGeneration, config, made)


def save_lfm2_vl(folder: Path) -> None:
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    words = tokenizer(
        *tiles, "<|tool_call_start|>", "<|tool_call_end|>",
        image_token="<image>", image_start_token="<|image_start|>", image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>", bos_token="<|startoftext|>",
    )  # fmt: skip
    config = hf.Lfm2VlConfig(
        text_config=text(words, layer_types=["conv", "full_attention"], block_multiple_of=8),
        vision_config={"model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 16,
                       "intermediate_size": 2 * HIDDEN, "vision_use_head": False, **TOWER},
        image_token_id=words.image_token_id,
        projector_hidden_size=HIDDEN,
        **ends(words),
    )  # fmt: skip
    made = hf.Lfm2VlProcessor(
        image_processor=hf.Lfm2VlImageProcessor(
            min_image_tokens=1, max_image_tokens=4, tile_size=64, max_tiles=4, max_num_patches=16
        ),
        tokenizer=words,
        chat_template=published("lfm2_2_5_vl"),
    )
    save(folder, hf.Lfm2VlForConditionalGeneration, config, made)


def save_paligemma(folder: Path) -> None:
    words = tokenizer(image_token="<image>", bos_token="<bos>")
    sides = hf.SiglipImageProcessor(size=square())
    sides.image_seq_length = (SIDE // PATCH) ** 2
    made = hf.PaliGemmaProcessor(image_processor=sides, tokenizer=words, chat_template=template("<image>"))
    config = hf.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text(words, head_dim=16, initializer_range=0.2)},
        vision_config={**siglip(), "vision_use_head": False},
        image_token_index=words.image_token_id,
        vocab_size=len(words),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        **ends(words),
    )
    save(folder, hf.PaliGemmaForConditionalGeneration, config, made)


MINICPM_MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def minicpmv_config(kind: type, words: Any, **ids: int) -> Any:
    return kind(
        text_config={"model_type": "qwen3_5_text", **hybrid(words)},
        vision_config={**SQUARE_TOWER, "image_size": 112, "insert_layer_id": 0},
        insert_layer_id=0,
        image_size=112,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        **ids,
        **ends(words),
    )


def minicpmv_processor(kind: type, words: Any) -> Any:
    sides = {"scale_resolution": 56, "max_slice_nums": 4}
    return kind(
        image_processor=hf.MiniCPMV4_6ImageProcessor(**sides),
        video_processor=hf.MiniCPMV4_6VideoProcessor(**sides),
        tokenizer=words,
        chat_template=template("<|image_pad|>", "<|video_pad|>"),
    )


def save_minicpmv4_6(folder: Path) -> None:
    words = tokenizer(**MINICPM_MARKS)
    config = minicpmv_config(hf.MiniCPMV4_6Config, words)
    save(folder, hf.MiniCPMV4_6ForConditionalGeneration, config, minicpmv_processor(hf.MiniCPMV4_6Processor, words))


def save_minicpmv4_7(folder: Path) -> None:
    """Its positions are places on a canvas: it has to know the marks of slices, and the end of a line."""
    words = tokenizer(**MINICPM_MARKS)
    names = ("image_start", "image_end", "slice_start", "slice_end")
    ids = {f"{name}_id": words.convert_tokens_to_ids(MINICPM_MARKS[f"{name}_token"]) for name in names}
    config = minicpmv_config(hf.MiniCPMV4_7Config, words, newline_id=words("\n")["input_ids"][0], **ids)
    save(folder, hf.MiniCPMV4_7ForConditionalGeneration, config, minicpmv_processor(hf.MiniCPMV4_7Processor, words))


def save_kimi_k25(folder: Path) -> None:
    words = tokenizer(
        "<|media_begin|>", "<|media_content|>", "<|media_end|>",
        image_token="<|media_pad|>", video_token="<|kimi_k25_video_placeholder|>",
    )  # fmt: skip
    language = text(
        words,
        num_key_value_heads=2,
        moe_intermediate_size=HIDDEN,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        num_mtp_layers=0,
    )
    config = hf.Kimi_K25Config(
        text_config={"model_type": "deepseek_v3", **language},
        vision_config={**TOWER, "intermediate_size": 2 * HIDDEN, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=HIDDEN,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|media_end|>"),
        tie_word_embeddings=False,
        **ends(words),
    )
    opened = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    made = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(max_patches=64),
        tokenizer=words,
        video_processor=hf.Kimi_K25VideoProcessor(),
        chat_template=template(opened, "<|kimi_k25_video_placeholder|>"),
    )
    save(folder, hf.Kimi_K25ForConditionalGeneration, config, made)


def save_ovis2(folder: Path) -> None:
    marks = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words = tokenizer("<image>", *marks)
    ids = words.convert_tokens_to_ids(marks)
    config = hf.Ovis2Config(
        text_config={"model_type": "qwen2", **text(words)},
        vision_config={**SQUARE_TOWER, "vocab_size": 40, "hidden_stride": 2},
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:],
        vocab_size=len(words),
        hidden_size=HIDDEN,
        **ends(words),
    )
    made = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessor(size=square(), max_patches=4, crop_to_patches=True),
        tokenizer=words,
        image_seq_length=1,
        chat_template=template("<image>"),
    )
    save(folder, hf.Ovis2ForConditionalGeneration, config, made)


def save_deepseek_vl(folder: Path) -> None:
    words = tokenizer(image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config={"model_type": "llama", **text(words)},
        vision_config={**siglip(), "vision_use_head": False},
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
        **ends(words),
    )
    made = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessor(size=square()),
        tokenizer=words,
        num_image_tokens=(SIDE // PATCH) ** 2,
        chat_template=template("<image_placeholder>"),
    )
    save(folder, hf.DeepseekVLForConditionalGeneration, config, made)


def save_deepseek_vl_hybrid(folder: Path) -> None:
    words = tokenizer(image_token="<image_placeholder>")
    config = hf.DeepseekVLHybridConfig(
        text_config={"model_type": "llama", **text(words)},
        vision_config={**siglip(), "vision_use_head": False, "image_size": 56},
        high_res_vision_config={"model_type": "sam_vision_model", "image_size": 256, "patch_size": 16,
                                "output_channels": 8, "global_attn_indexes": [0], "mlp_dim": HIDDEN, **TOWER},
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
        **ends(words),
    )  # fmt: skip
    made = hf.DeepseekVLHybridProcessor(
        image_processor=hf.DeepseekVLHybridImageProcessor(size=square(56), high_res_size=square(256)),
        tokenizer=words,
        num_image_tokens=16,
        chat_template=template("<image_placeholder>"),
    )
    save(folder, hf.DeepseekVLHybridForConditionalGeneration, config, made)


FAMILIES_TINY: dict[str, Callable[[Path], Any]] = {
    "qwen2_vl": save_qwen2_vl,
    "qwen2_5_vl": save_qwen2_5_vl,
    "qwen3_vl": save_qwen3_vl,
    "llava_clip": partial(save_llava, tower="clip"),
    "llava_siglip": partial(save_llava, tower="siglip"),
    "llava_dinov2": partial(save_llava, tower="dinov2"),
    "llava_onevision": save_llava_onevision,
    "internvl": save_internvl,
    "smolvlm": partial(save_smolvlm, written=published("smolvlm")),
    "smolvlm2": partial(save_smolvlm, written=template("<image>", "<video>")),
    "gemma3": save_gemma3,
    "glm4v": save_glm4v,
    "mistral3": save_mistral3,
    "qwen3_vl_moe": save_qwen3_vl_moe,
    "qwen3_5_think": partial(save_qwen3_5, template_name="qwen3_5_think"),
    "qwen3_5_nothink": partial(save_qwen3_5, template_name="qwen3_5_nothink"),
    "qwen3_5_moe": save_qwen3_5_moe,
    "qwen3_omni": save_qwen3_omni,
    "glm4v_moe": save_glm4v_moe,
    "glm46v": save_glm46v,
    "gemma4": save_gemma4,
    "idefics3": save_idefics3,
    "llava_next": save_llava_next,
    "lfm2_vl": save_lfm2_vl,
    "paligemma": save_paligemma,
    "minicpmv4_6": save_minicpmv4_6,
    "minicpmv4_7": save_minicpmv4_7,
    "kimi_k25": save_kimi_k25,
    "ovis2": save_ovis2,
    "deepseek_vl": save_deepseek_vl,
    "deepseek_vl_hybrid": save_deepseek_vl_hybrid,
}

# Tiny models that are not called as their `config.model_type` is.
MODEL_TYPES = {
    **dict.fromkeys(("llava_clip", "llava_siglip", "llava_dinov2"), "llava"),
    **dict.fromkeys(("qwen3_5_think", "qwen3_5_nothink"), "qwen3_5"),
    "smolvlm2": "smolvlm",
    "qwen3_omni": "qwen3_omni_moe_thinker",
}
NEEDS_IMAGES = ("paligemma",)  # in every prompt


def facts_of(name: str) -> Family:
    """What the package knows of a tiny model's family."""
    return FAMILIES[MODEL_TYPES.get(name, name)]


def save_for_vllm(name: str, folder: Path) -> None:
    """Write a family's tiny model with heads that are wide enough for vLLM on a CPU, and an output layer of its own."""
    FAMILIES_TINY[name](folder)
    config, processor = hf.AutoConfig.from_pretrained(folder), hf.AutoProcessor.from_pretrained(folder)
    widen(config)
    if name == "gemma4":  # this and the next are in published configurations
        config.vision_config.default_output_length = 70
    if name == "qwen3_vl_moe":
        config.text_config.norm_topk_prob = True
    if name == "gemma3":  # vLLM puts these tokens of Gemma's vocabulary around images
        processor.tokenizer.add_tokens(["\n", 2 * "\n", 3 * "\n", 4 * "\n"])
        config.get_text_config().vocab_size = len(processor.tokenizer)
    save(folder, getattr(hf, config.architectures[0]), config, processor)
    name_as_on_the_hub(folder, config)


def name_as_on_the_hub(folder: Path, config: Any) -> None:
    """Give the tower's tensors the names in published files, which transformers writes only where it has read them."""
    if config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model"):
        file = folder / "model.safetensors"
        tensors = load_file(file).items()
        named = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors}
        save_file(named, file, metadata={"format": "pt"})


def widen(config: Any) -> None:
    """Double the width of the language model and its heads, to heads of 32."""
    language = config.get_text_config()
    language.hidden_size *= 2
    for name in ("head_dim", "global_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"):
        if getattr(language, name, None):
            setattr(language, name, 2 * getattr(language, name))
    if hasattr(language, "linear_key_head_dim"):
        language.linear_key_head_dim = language.linear_value_head_dim = 32
    sections = (language.rope_parameters or {}).get("mrope_section")
    if sections:
        language.rope_parameters["mrope_section"] = [2 * size for size in sections]
    is_out = hasattr(config.vision_config, "embed_dim")  # Qwen2-VL's name of the tower's own width
    for part, name in (
        (config.vision_config, "hidden_size" if is_out else "out_hidden_size"),
        (config.vision_config, "projection_dim"),
        (config, "hidden_size"),
        (config, "projection_dim"),
    ):
        if name in part.to_dict():
            setattr(part, name, language.hidden_size)
    for part in (config, language):
        part.tie_word_embeddings = False
