"""From data rows to encoded prompts: every unique prompt is tokenised once, every unique image processed once.

Nothing here samples or scores; training and evaluation call it once per batch of rows.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from vlm_grpo.data.images import open_image
from vlm_grpo.data.videos import Clip, frame_count, open_video, qwen_frame_count
from vlm_grpo.records import Conversation, ImageRef, JsonSchema, Message, Row, VideoRef
from vlm_grpo.rollouts.chat_template import ChatTemplate, split_answer_prefix
from vlm_grpo.rollouts.decoding import TurnDecoder
from vlm_grpo.rollouts.image_cache import CachedImageProcessor, Counters
from vlm_grpo.rollouts.messages import Prompt, check_text, fill_media, read_prompt
from vlm_grpo.rollouts.video import (
    TensorVideoProcessor,
    check_frames,
    check_media,
    completion_types,
    join_dimension,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlm_grpo.rollouts.segment import CompletionSegment
    from vlm_grpo.shared_prefix.vision_cache import ImageFeatures

# One value per token: padded like the prompt and continued over the completion (`EncodedPrompt.completion_types`).
PER_TOKEN_FIELDS = ("token_type_ids", "mm_token_type_ids")
MEDIA_KINDS = ("image", "video")
TEXT_KEYS = ("input_ids", "attention_mask", "labels")
TOOLS_COLUMN = "episode_tools"  # column with the schemas that a row's chat template is given


Ref = TypeVar("Ref", ImageRef, VideoRef)
Decoded = TypeVar("Decoded")


@dataclass
class EncodedPrompt:
    """One encoded prompt. All completions of a group share the same object, except those that have images themselves.

    `visual` holds the tensors of this row's images alone, on the host, with leading dimensions as the processor
    returns them (patches, tiles or images, depending on the family). `opening` is the text at the end of the prompt
    that already belongs to the assistant's turn: what the chat template opens (`<think>`), and the row's own prefix.
    """

    input_ids: list[int]
    messages: list[Message] | str
    raw_prompt: Conversation | str | None = None  # the prompt of a row without media, in the row's own shape
    visual: dict[str, Tensor] = field(default_factory=dict)
    per_token: dict[str, list[int]] = field(default_factory=dict)
    completion_types: Mapping[str, int] = field(default_factory=dict)  # `per_token` over the completion; else 0
    images: list[Image.Image] = field(default_factory=list)  # decoded, for rewards and logs
    refs: list[ImageRef] = field(default_factory=list)  # where they come from
    videos: list[VideoRef] = field(default_factory=list)
    features: ImageFeatures | None = None  # of a frozen vision tower
    answer_prefix_length: int = 0  # tokens at the end with which the row itself begins the answer
    opening: str = ""
    tools: Sequence[JsonSchema] | None = None  # schemas that were rendered by the chat template
    segment: CompletionSegment | None = None  # the completion, where it has images; `visual` and `refs` hold them too

    @property
    def media(self) -> set[str]:
        """Which of MEDIA_KINDS the prompt has."""
        return {kind for kind, refs in zip(MEDIA_KINDS, (self.refs, self.videos), strict=True) if refs}

    def prompt_for_rewards(self) -> list[Message] | str:
        """Return the prompt in the shape in which TRL passes it to reward functions: strings stay strings, and image
        blocks hold the decoded images.
        """
        if self.raw_prompt is not None or isinstance(self.messages, str):
            return self.raw_prompt or self.messages
        return fill_media(self.messages, self.images, self.videos)

    def without_images(self) -> EncodedPrompt:
        """Return the prompt as loss and checkpoints need it, so that decoded images are freed after scoring."""
        return replace(self, images=[])


def unique_prompts(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """Return each object once, in order."""
    return list({id(prompt): prompt for prompt in prompts}.values())


def drop_images(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """Return the prompts without decoded images, in the order of the rows and still one object per prompt."""
    copies = {id(prompt): prompt.without_images() for prompt in unique_prompts(prompts)}
    return [copies[id(prompt)] for prompt in prompts]


def missing_dummies(
    prompts: Sequence[EncodedPrompt], dummies: Mapping[str, EncodedPrompt] | None
) -> list[EncodedPrompt]:
    """Return the dummy prompts of the kinds of media that none of the prompts has."""
    media = {kind for prompt in prompts for kind in prompt.media}
    return [dummy for kind, dummy in (dummies or {}).items() if kind not in media]


class PromptEncoder:
    """Turns data rows into encoded prompts, for one processor.

    Args:
        processor: the model's processor; a private copy is used, the caller's stays untouched.
        template_options: keyword arguments of every `apply_chat_template` call.
    """

    def __init__(self, processor: ProcessorMixin, template_options: Mapping[str, object]) -> None:
        self.counters = Counters()
        self.base_processor = processor
        self._dummy_prompts: dict[str, EncodedPrompt] = {}
        self.template_options = dict(template_options)
        self.template = ChatTemplate(processor, template_options)
        self.decode = TurnDecoder(self.tokenizer)
        names = (getattr(processor, f"{kind}_token", None) for kind in MEDIA_KINDS)
        self.placeholders = [name for name in names if isinstance(name, str)]
        self.processor = copy.copy(processor)
        self.cached_image_processor: CachedImageProcessor | None = None
        if getattr(processor, "image_processor", None) is not None:
            self.cached_image_processor = CachedImageProcessor(processor.image_processor, self.counters)
            self.processor.image_processor = self.cached_image_processor
        if getattr(processor, "video_processor", None) is not None:
            self.processor.video_processor = TensorVideoProcessor(processor.video_processor)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's, or that of a model without images itself."""
        tokenizer: Any = getattr(self.base_processor, "tokenizer", self.base_processor)
        return tokenizer

    def encode(self, rows: Sequence[Row]) -> list[EncodedPrompt]:
        """Return one encoded prompt per row, in order; equal prompts share one object."""
        encoded_by_key: dict[Hashable, EncodedPrompt] = {}
        decoded: dict[Hashable, object] = {}
        encoded = []
        for row in rows:
            prompt, tools, where = read_prompt(row), row.get(TOOLS_COLUMN), str(row.get("where", ""))
            check_text(prompt.messages, self.placeholders, where)
            check_media(prompt, self.base_processor, where)
            media = (*(ref.key for ref in prompt.images), *(ref.key for ref in prompt.videos))
            key = (json.dumps([prompt.messages, prompt.raw_prompt, tools], sort_keys=True, default=str), media)
            if key not in encoded_by_key:
                encoded_by_key[key] = self._encode_one(prompt, decoded, tools)
            encoded.append(encoded_by_key[key])
        if self.cached_image_processor is not None:
            self.cached_image_processor.results.clear()
        return encoded

    def _encode_one(
        self, prompt: Prompt, decoded: dict[Hashable, object], tools: Sequence[JsonSchema] | None
    ) -> EncodedPrompt:
        images = [self._decode(ref, open_image, decoded) for ref in prompt.images]
        clips: list[Clip] = [self._decode(ref, self._open_video, decoded) for ref in prompt.videos]
        opening = self.template.opening(prompt.messages, tools)
        answer_prefix, types = self._text_ids(opening.from_row), completion_types(self.base_processor)
        if isinstance(prompt.messages, str):
            out: Mapping[str, Any] = self.processor(text=[prompt.messages])
        else:
            messages = self.template.normalize(split_answer_prefix(prompt.messages)[0], tools)
            if self.cached_image_processor is not None:
                self.cached_image_processor.expected_keys = [ref.key for ref in prompt.images]
            self.counters.processed += len(clips)
            options: dict[str, Any] = {**({"tools": tools} if tools else {}), **self.template_options}
            out = self.processor.apply_chat_template(  # type: ignore[assignment]  # tokens, as return_dict asks for
                [fill_media(messages, images, [clip.frames for clip in clips])],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"videos_kwargs": _video_options(clips)} if clips else None,
                **options,
            )
        return EncodedPrompt(
            input_ids=_as_ints(out["input_ids"][0]) + answer_prefix,
            messages=prompt.messages,
            raw_prompt=prompt.raw_prompt,
            visual={
                k: pin_on_host(torch.as_tensor(v)) for k, v in out.items() if k not in (*TEXT_KEYS, *PER_TOKEN_FIELDS)
            },
            per_token={
                k: _as_ints(out[k][0]) + [types.get(k, 0)] * len(answer_prefix) for k in PER_TOKEN_FIELDS if k in out
            },
            completion_types=types,
            images=images,
            refs=prompt.images,
            videos=prompt.videos,
            answer_prefix_length=len(answer_prefix),
            opening=opening.from_template + opening.from_row,
            tools=tools,
        )

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _decode(self, ref: Ref, open_ref: Callable[[Ref], Decoded], decoded: dict[Hashable, object]) -> Decoded:
        if ref.key not in decoded:
            decoded[ref.key] = open_ref(ref)
            self.counters.decoded += 1
        return cast("Decoded", decoded[ref.key])

    def _open_video(self, ref: VideoRef) -> Clip:
        is_qwen = type(self.processor).__name__.startswith("Qwen")
        return open_video(ref, qwen_frame_count if is_qwen else frame_count)

    def dummy_prompt(self, kind: str) -> EncodedPrompt:
        """Return a prompt that is nothing but one small white image, or one video of two such frames."""
        if kind not in self._dummy_prompts:
            white = Image.new("RGB", (56, 56), "white")
            media = {"images": [white]} if kind == "image" else {"videos": [[white, white]]}
            row = {"prompt": [{"role": "user", "content": [{"type": kind}]}], **media}
            self._dummy_prompts[kind] = PromptEncoder(self.base_processor, self.template_options).encode([row])[0]
        return self._dummy_prompts[kind]

    def unexpanded_ids(self, messages: list[Message] | str) -> list[int]:
        """Return a prompt's tokens with one placeholder per image, for an engine that expands placeholders itself."""
        tokenizer = self.tokenizer
        if isinstance(messages, str):
            return tokenizer(messages)["input_ids"]
        before, answer_prefix = split_answer_prefix(messages)
        text = self.template.render(before)
        has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_start)["input_ids"]
        return ids + self._text_ids(self.template.opening(messages).from_row) if answer_prefix else ids

    def image_facts(self, prompt: EncodedPrompt) -> dict[str, object]:
        """Return the (width, height) of a prompt's images for rewards: original, and as the model sees them."""
        return {
            "image_sizes": [image.size for image in prompt.images],
            "processed_sizes": self.processed_sizes(prompt),
        }

    def processed_sizes(self, prompt: EncodedPrompt) -> list[tuple[int, int] | None]:
        """Return the (width, height) in pixels of each image as processed: the processor's grid times its patch.

        None where the family has no such grid (a fixed size, or tiles).
        """
        grids = prompt.visual.get("image_grid_thw")
        if grids is None:
            return [None] * len(prompt.images)
        patch = self.processor.image_processor.patch_size
        return [(width * patch, height * patch) for _, height, width in grids.tolist()]


def _video_options(clips: Sequence[Clip]) -> dict[str, object]:
    """Return options that tell the processor at which rate the frames were already sampled."""
    metadata = [
        {"total_num_frames": len(clip.frames), "fps": clip.fps, "frames_indices": list(range(len(clip.frames)))}
        for clip in clips
    ]
    return {"do_sample_frames": False, "video_metadata": [metadata]}


def _as_ints(values: Tensor | Sequence[int]) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def collate_visual(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Return the visual tensors of all rows, concatenated; a key that no row has is missing."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.visual))
    check_frames([p.visual["pixel_values_videos"] for p in prompts if "pixel_values_videos" in p.visual])
    return {name: _concat_rows(name, [p.visual for p in prompts if name in p.visual]) for name in names}


def _concat_rows(name: str, rows: list[dict[str, Tensor]]) -> Tensor:
    """Concatenate along the first dimension, zero-padding the others where rows differ, or as the family packs."""
    values, dimension = [row[name] for row in rows], join_dimension(name, rows[0])
    if len(values) == 1 or dimension:
        return pin_on_host(torch.cat(values, dimension))
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return pin_on_host(torch.cat([_pad_to(value, shape) for value in values]))


def pin_on_host(tensor: Tensor) -> Tensor:
    """Return the tensor in pinned memory, from which a GPU copies asynchronously, if there is a GPU."""
    is_copied = torch.cuda.is_available() and tensor.device.type == "cpu"
    return tensor.pin_memory() if is_copied else tensor


def _pad_to(value: Tensor, shape: list[int]) -> Tensor:
    padding = [(0, size - length) for size, length in zip(shape, value.shape[1:], strict=True)]
    if not any(after for _, after in padding):
        return value
    return torch.nn.functional.pad(value, [side for pair in reversed(padding) for side in pair])


def collate_per_token(
    prompts: Sequence[EncodedPrompt], prompt_length: int, completion_length: int
) -> dict[str, Tensor]:
    """Return per-token fields as (B, P + C) tensors: left-padded over the prompt, `completion_types` after it."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.per_token))
    return {name: _per_token_rows(name, prompts, prompt_length, completion_length) for name in names}


def _per_token_rows(name: str, prompts: Sequence[EncodedPrompt], prompt_length: int, completion_length: int) -> Tensor:
    rows = torch.zeros(len(prompts), prompt_length + completion_length, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        values = prompt.per_token.get(name, [])
        row[prompt_length - len(values) : prompt_length] = torch.tensor(values, dtype=torch.long)
        row[prompt_length:] = prompt.completion_types.get(name, 0)
        completion = prompt.segment.per_token.get(name, [])[:completion_length] if prompt.segment else []
        row[prompt_length : prompt_length + len(completion)] = torch.tensor(completion, dtype=torch.long)
    return rows
