"""From data rows to encoded prompts: every unique prompt is tokenised once, every unique image processed once.

Nothing here samples or scores; the trainer's pipeline calls it once per rollout.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from vlm_grpo.data.images import open_image
from vlm_grpo.data.videos import Clip, frame_count, open_video, qwen_frame_count
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.rollouts.chat_template import ChatTemplate, turn_begun
from vlm_grpo.rollouts.decoding import TurnDecoder
from vlm_grpo.rollouts.image_cache import CachedImageProcessor, Counters
from vlm_grpo.rollouts.messages import Prompt, check_text, fill, read_prompt
from vlm_grpo.rollouts.video import (
    TensorVideoProcessor,
    check_frames,
    check_media,
    completion_types,
    join_dimension,
)

if TYPE_CHECKING:
    from vlm_grpo.rollouts.segment import CompletionSegment

# One value per token: padded like the prompt and continued over the completion (`EncodedPrompt.completion_types`).
PER_TOKEN_FIELDS = ("token_type_ids", "mm_token_type_ids")
MEDIA_KINDS = ("image", "video")
TEXT_KEYS = ("input_ids", "attention_mask", "labels")
TOOLS_COLUMN = "episode_tools"  # column with the schemas that a row's chat template is given


@dataclass
class EncodedPrompt:
    """One encoded prompt. All completions of a group share the same object, but those that show images themselves.

    `visual` holds the tensors of this row's images alone, on the host, with leading dimensions as the processor
    returns them (patches, tiles or images, depending on the family). `opening` is the text at the end of the prompt
    that belongs to the assistant's turn already: what the chat template opens (`<think>`), and what the row begins.
    """

    input_ids: list[int]
    messages: list[dict[str, Any]] | str
    given: list[dict[str, Any]] | str | None = None  # the prompt of a row without media, in the row's own shape
    visual: dict[str, Tensor] = field(default_factory=dict)
    per_token: dict[str, list[int]] = field(default_factory=dict)
    completion_types: Mapping[str, int] = field(default_factory=dict)  # `per_token` over the completion; else 0
    images: list[Any] = field(default_factory=list)  # decoded, for rewards and logs
    refs: list[ImageRef] = field(default_factory=list)  # where they come from
    videos: list[VideoRef] = field(default_factory=list)
    features: Any = None  # of a frozen vision tower
    begun: int = 0  # tokens at the end with which the row, not the template, begins the answer
    opening: str = ""
    tools: Sequence[Mapping[str, Any]] | None = None  # schemas that the chat template was given
    later: CompletionSegment | None = (
        None  # what the completion shows, where it shows images; `visual` and `refs` hold it too
    )

    @property
    def media(self) -> set[str]:
        """Which of MEDIA the prompt shows."""
        return {kind for kind, refs in zip(MEDIA_KINDS, (self.refs, self.videos), strict=True) if refs}

    def prompt_for_rewards(self) -> list[dict[str, Any]] | str:
        """Return the prompt in the shape in which TRL hands it to reward functions: strings stay strings, and blocks of
        images hold the decoded images.
        """
        return fill(self.messages, self.images, self.videos) if self.given is None else self.given

    def without_images(self) -> EncodedPrompt:
        """The part that the loss and a checkpoint need, so that decoded images are freed after scoring."""
        return replace(self, images=[])


def unique_prompts(samples: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """Each object once, in order."""
    return list({id(sample): sample for sample in samples}.values())


def drop_images(samples: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    """The samples without decoded images, in the order of the rows and still one object per prompt."""
    copies = {id(sample): sample.without_images() for sample in unique_prompts(samples)}
    return [copies[id(sample)] for sample in samples]


def missing_dummies(
    samples: Sequence[EncodedPrompt], blanks: Mapping[str, EncodedPrompt] | None
) -> list[EncodedPrompt]:
    """The blank prompts of the kinds of media that none of the samples shows."""
    shown = {kind for sample in samples for kind in sample.media}
    return [blank for kind, blank in (blanks or {}).items() if kind not in shown]


class PromptEncoder:
    """Turns data rows into samples, for one processor.

    Args:
        processor: the model's processor; a private copy is used, the caller's stays untouched.
        template_options: keyword arguments of every `apply_chat_template` call.
    """

    def __init__(self, processor: ProcessorMixin, template_options: Mapping[str, Any]) -> None:
        self.counters = Counters()
        self.plain = processor
        self._blank: dict[str, EncodedPrompt] = {}
        self.template_options = dict(template_options)
        self.template = ChatTemplate(processor, template_options)
        self.decode = TurnDecoder(getattr(processor, "tokenizer", processor))
        names = (getattr(processor, f"{kind}_token", None) for kind in MEDIA_KINDS)
        self.placeholders = [name for name in names if isinstance(name, str)]
        self.processor = copy.copy(processor)
        if getattr(processor, "image_processor", None) is not None:
            self.once = CachedImageProcessor(processor.image_processor, self.counters)
            self.processor.image_processor = self.once
        else:
            self.once = None
        if getattr(processor, "video_processor", None) is not None:
            self.processor.video_processor = TensorVideoProcessor(processor.video_processor)

    @property
    def tokenizer(self) -> Any:
        """The processor's, or that of a model without images itself."""
        return getattr(self.plain, "tokenizer", self.plain)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[EncodedPrompt]:
        """One sample per row, in order; equal prompts share one object."""
        samples: dict[Hashable, EncodedPrompt] = {}
        decoded: dict[Hashable, Any] = {}
        encoded = []
        for row in rows:
            prompt, tools, where = read_prompt(row), row.get(TOOLS_COLUMN), str(row.get("where", ""))
            check_text(prompt.messages, self.placeholders, where)
            check_media(prompt, self.plain, where)
            media = tuple(ref.key for ref in (*prompt.images, *prompt.videos))
            key = (json.dumps([prompt.messages, prompt.given, tools], sort_keys=True, default=str), media)
            if key not in samples:
                samples[key] = self._encode_one(prompt, decoded, tools)
            encoded.append(samples[key])
        if self.once is not None:
            self.once.results.clear()
        return encoded

    def _encode_one(
        self, prompt: Prompt, decoded: dict[Hashable, Any], tools: Sequence[Mapping[str, Any]] | None
    ) -> EncodedPrompt:
        images = [self._decode(ref, open_image, decoded) for ref in prompt.images]
        clips: list[Clip] = [self._decode(ref, self._open_video, decoded) for ref in prompt.videos]
        opening = self.template.opening(prompt.messages, tools)
        begun, types = self._text_ids(opening.by_row), completion_types(self.plain)
        if isinstance(prompt.messages, str):
            out = self.processor(text=[prompt.messages])
        else:
            messages = self.template.shaped(turn_begun(prompt.messages)[0], tools)
            if self.once is not None:
                self.once.announced = [ref.key for ref in prompt.images]
            self.counters.processed += len(clips)
            out = self.processor.apply_chat_template(
                [fill(messages, images, [clip.frames for clip in clips])],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"videos_kwargs": _video_options(clips)} if clips else None,
                **({"tools": tools} if tools else {}),
                **self.template_options,
            )
        return EncodedPrompt(
            input_ids=_ints(out["input_ids"][0]) + begun,
            messages=prompt.messages,
            given=prompt.given,
            visual={k: on_host(torch.as_tensor(v)) for k, v in out.items() if k not in (*TEXT_KEYS, *PER_TOKEN_FIELDS)},
            per_token={k: _ints(out[k][0]) + [types.get(k, 0)] * len(begun) for k in PER_TOKEN_FIELDS if k in out},
            completion_types=types,
            images=images,
            refs=prompt.images,
            videos=prompt.videos,
            begun=len(begun),
            opening=opening.by_template + opening.by_row,
            tools=tools,
        )

    def _text_ids(self, text: str) -> list[int]:
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _decode(self, ref: ImageRef | VideoRef, open_ref: Callable[[Any], Any], decoded: dict[Hashable, Any]) -> Any:
        if ref.key not in decoded:
            decoded[ref.key] = open_ref(ref)
            self.counters.decoded += 1
        return decoded[ref.key]

    def _open_video(self, ref: VideoRef) -> Clip:
        is_qwen = type(self.processor).__name__.startswith("Qwen")
        return open_video(ref, qwen_frame_count if is_qwen else frame_count)

    def blank(self, kind: str) -> EncodedPrompt:
        """A prompt that is nothing but one small white image, or one video of two such frames."""
        if kind not in self._blank:
            white = Image.new("RGB", (56, 56), "white")
            shown = {"images": [white]} if kind == "image" else {"videos": [[white, white]]}
            row = {"prompt": [{"role": "user", "content": [{"type": kind}]}], **shown}
            self._blank[kind] = PromptEncoder(self.plain, self.template_options).encode([row])[0]
        return self._blank[kind]

    def unexpanded_ids(self, messages: list[dict[str, Any]] | str) -> list[int]:
        """A prompt's tokens with one placeholder per image, for an engine that expands placeholders itself."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if isinstance(messages, str):
            return tokenizer(messages)["input_ids"]
        before, begun = turn_begun(messages)
        text = self.template.render(before)
        has_start = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_start)["input_ids"]
        return ids + self._text_ids(self.template.opening(messages).by_row) if begun else ids

    def resized_images(self, sample: EncodedPrompt) -> list[Any]:
        """The sample's images in the size that was processed, so that an engine with other limits sees the same."""
        sizes = self.processed_sizes(sample)
        return [
            image if size is None else image.resize(size, Image.Resampling.BICUBIC)
            for image, size in zip(sample.images, sizes, strict=True)
        ]

    def facts(self, sample: EncodedPrompt) -> dict[str, Any]:
        """What rewards are told of a prompt's images: their (width, height), original and as the model sees them."""
        return {
            "image_sizes": [image.size for image in sample.images],
            "processed_sizes": self.processed_sizes(sample),
        }

    def processed_sizes(self, sample: EncodedPrompt) -> list[tuple[int, int] | None]:
        """Width and height in pixels of each image as the model sees it: the processor's grid times its patch.

        None where the family has no such grid (a fixed size, or tiles).
        """
        grids = sample.visual.get("image_grid_thw")
        if grids is None:
            return [None] * len(sample.images)
        patch = self.processor.image_processor.patch_size
        return [(width * patch, height * patch) for _, height, width in grids.tolist()]


def _video_options(clips: Sequence[Clip]) -> dict[str, Any]:
    """Frames are sampled already; the processor has to know at which rate."""
    metadata = [
        {"total_num_frames": len(clip.frames), "fps": clip.fps, "frames_indices": list(range(len(clip.frames)))}
        for clip in clips
    ]
    return {"do_sample_frames": False, "video_metadata": [metadata]}


def _ints(values: Any) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def collate_visual(samples: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The visual tensors of some rows, joined; rows without images contribute nothing, and no key if none has any."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.visual))
    check_frames([s.visual["pixel_values_videos"] for s in samples if "pixel_values_videos" in s.visual])
    return {name: _join_rows(name, [s.visual for s in samples if name in s.visual]) for name in names}


def _join_rows(name: str, rows: list[dict[str, Tensor]]) -> Tensor:
    """Concatenate along the first dimension, padding the others with zeros where rows differ, or as a family packs."""
    values, dimension = [row[name] for row in rows], join_dimension(name, rows[0])
    if len(values) == 1 or dimension:
        return on_host(torch.cat(values, dimension))
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return on_host(torch.cat([_pad_to(value, shape) for value in values]))


def on_host(tensor: Tensor) -> Tensor:
    """The tensor in memory from which a GPU, if there is one, copies without the CPU's help."""
    is_copied = torch.cuda.is_available() and tensor.device.type == "cpu"
    return tensor.pin_memory() if is_copied else tensor


def _pad_to(value: Tensor, shape: list[int]) -> Tensor:
    missing = [(0, size - have) for size, have in zip(shape, value.shape[1:], strict=True)]
    if not any(after for _, after in missing):
        return value
    return torch.nn.functional.pad(value, [side for pair in reversed(missing) for side in pair])


def collate_per_token(
    samples: Sequence[EncodedPrompt], prompt_length: int, completion_length: int
) -> dict[str, Tensor]:
    """Per-token fields as (B, P + C) tensors: left-padded over the prompt, `completion_types` after it."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.per_token))
    return {name: _per_token_rows(name, samples, prompt_length, completion_length) for name in names}


def _per_token_rows(name: str, samples: Sequence[EncodedPrompt], prompt_length: int, completion_length: int) -> Tensor:
    rows = torch.zeros(len(samples), prompt_length + completion_length, dtype=torch.long)
    for row, sample in zip(rows, samples, strict=True):
        values = sample.per_token.get(name, [])
        row[prompt_length - len(values) : prompt_length] = torch.tensor(values, dtype=torch.long)
        row[prompt_length:] = sample.completion_types.get(name, 0)
        after = sample.later.per_token.get(name, [])[:completion_length] if sample.later else []
        row[prompt_length : prompt_length + len(after)] = torch.tensor(after, dtype=torch.long)
    return rows
