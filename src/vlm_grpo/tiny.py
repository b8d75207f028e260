"""A tiny Qwen2.5-VL with its processor, built from config classes without a download.

Except for its size it is a real model of that family: it is saved, loaded and trained like those on the Hub. The tests
use the default size (about 0.1 million parameters), the quickstart `QUICKSTART` (about 1 million).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        PreTrainedTokenizerBase,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )


PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# Single tokens, as in newer Qwen vocabularies, but not special: they are kept in decoded text.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CORPUS = (
    "system user assistant 0 1 2 3 4 5 6 7 8 9",
    "Which digit is this? What color is the shape? How many shapes are there?",
    "red blue green yellow circle square triangle left right top bottom",
    'the answer is {"bbox_2d": [10, 20, 30, 40]} {"reasoning_steps": ["I look at the image."], "answer": "A"}',
)


@dataclass(frozen=True)
class TinySize:
    """Widths and depths. The head dimension must be a multiple of 8, so that its rotary sections are integers."""

    hidden: int = 32
    layers: int = 2
    heads: int = 2
    intermediate: int = 64
    vision_hidden: int = 32
    vision_layers: int = 2
    vision_heads: int = 2
    vocabulary: int = 512
    is_tied: bool = True  # whether the embeddings are the head, too


QUICKSTART = TinySize(
    hidden=128, layers=3, heads=4, intermediate=384, vision_hidden=96, vision_layers=2, vision_heads=4, vocabulary=512
)


def build_tiny_qwen(
    size: TinySize | None = None,
    *,
    corpus: Sequence[str] = CORPUS,
    min_pixels: int = 56 * 56,
    max_pixels: int = 224 * 224,
    seed: int = 0,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Return a randomly initialized `(model, processor)` of the Qwen2.5-VL family, deterministic for the arguments.

    Args:
        size: widths and depths; None is about 0.1 million parameters.
        corpus: lines whose frequent words become single tokens; any other text is encoded as bytes.
        min_pixels, max_pixels: limits of the image processor, in pixels after rounding to multiples of 28.
        seed: seed of the weights. The global random state of torch is not changed.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    size = size or TinySize()
    processor = _processor(_tokenizer(corpus, size.vocabulary), min_pixels, max_pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(size, processor.tokenizer))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def save_tiny_qwen(folder: str | Path, size: TinySize | None = None, **options: Any) -> Path:
    """Build a model as `build_tiny_qwen` does, save it for `from_pretrained`, and return its folder."""
    model, processor = build_tiny_qwen(size, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def chat_template() -> str:
    """Return a chat template in Qwen's format, with one placeholder per image or video and no default system turn."""
    return files("vlm_grpo").joinpath("tiny_chat_template.jinja").read_text(encoding="utf-8")


def _tokenizer(corpus: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer: it can encode any text, and words of the corpus in few tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, START, END, *VISION]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, *VISION],
        padding_side="left",
    )


def _processor(tokenizer: PreTrainedTokenizerBase, min_pixels: int, max_pixels: int) -> Qwen2_5_VLProcessor:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": min_pixels, "longest_edge": max_pixels}),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": min_pixels, "longest_edge": max_pixels}),
        chat_template=chat_template(),
    )


def _config(size: TinySize, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    from transformers import Qwen2_5_VLConfig

    half_head = size.hidden // size.heads // 2
    time = half_head // 4
    height = (half_head - time) // 2

    def token(name: str) -> int:
        number = tokenizer.convert_tokens_to_ids(name)
        assert isinstance(number, int)  # a list is of a list of names
        return number

    ends: dict[str, Any] = {"bos_token_id": token(PAD), "eos_token_id": token(END), "pad_token_id": token(PAD)}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": max(1, size.heads // 2),
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [time, height, half_head - time - height],  # must sum to half the head dimension
        },
        "tie_word_embeddings": size.is_tied,
        **ends,
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 2 * size.vision_hidden,
        "num_heads": size.vision_heads,
        "out_hidden_size": size.hidden,
        "fullatt_block_indexes": [size.vision_layers - 1],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=size.is_tied,
        **ends,
        image_token_id=token(VISION[3]),
        video_token_id=token(VISION[4]),
        vision_start_token_id=token(VISION[0]),
        vision_end_token_id=token(VISION[1]),
    )
