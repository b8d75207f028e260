"""The turn between two of the assistant's: results of tools as tokens and pixels.

Only this turn is rendered and tokenised; what was generated stays as it is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.envs.environment import blocks_of
from vlm_grpo.envs.tool_parser import PLACEHOLDER_TURN, ToolParser, ToolResult
from vlm_grpo.records import ImageRef
from vlm_grpo.rollouts.chat_template import common_length
from vlm_grpo.rollouts.encoder import PER_TOKEN_FIELDS, TEXT_KEYS, PromptEncoder, on_host
from vlm_grpo.rollouts.segment import CompletionSegment


def encode_results(
    encoder: PromptEncoder,
    protocol: ToolParser,
    results: Sequence[ToolResult],
    last: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> CompletionSegment:
    """The turn that hands results to the model and begins its next one.

    Args:
        last: the token that ended the turn before; it is not repeated.
        tools: schemas, for a chat template that knows tools.
    """
    answer, images = _with_open_images(protocol.answer(results))
    turn, end = protocol.turn(results)
    text, opening = _text_after(encoder, turn, end, answer, tools)
    tokenizer = encoder.tokenizer
    for end in (tokenizer.convert_ids_to_tokens(last), tokenizer.eos_token):
        if end and text.startswith(end):
            text = text.removeprefix(end)
            break
    if images and encoder.once is None:
        raise ValueError("a tool has returned an image, and this model reads text alone; return text")
    if not images:
        return CompletionSegment(tokenizer(text, add_special_tokens=False)["input_ids"], {}, {}, [], opening)
    out = encoder.plain(text=[text], images=images, text_kwargs={"add_special_tokens": False}, return_tensors="pt")
    encoder.counters.processed += len(images)
    return CompletionSegment(
        ids=out["input_ids"][0].tolist(),
        per_token={name: out[name][0].tolist() for name in PER_TOKEN_FIELDS if name in out},
        visual={k: on_host(torch.as_tensor(v)) for k, v in out.items() if k not in (*TEXT_KEYS, *PER_TOKEN_FIELDS)},
        refs=[ImageRef(_as_file(image)) for image in images],  # a checkpoint can keep files
        opening=opening,
    )


def _with_open_images(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """The messages with empty image blocks, and the decoded images in their order."""
    images, emptied = [], []
    for message in messages:
        blocks = blocks_of(message["content"])
        images += [open_image(image_ref(block["image"])) for block in blocks if block["type"] == "image"]
        emptied.append({**message, "content": without_images(blocks)})
    return emptied, images


def without_images(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The blocks with empty ones where images are."""
    return [{"type": "image"} if block["type"] == "image" else dict(block) for block in blocks]


def _text_after(
    encoder: PromptEncoder, turn: dict[str, Any], end: str, answer: list[dict[str, Any]], tools: Any
) -> tuple[str, str]:
    """What the chat template writes after a turn of the assistant that ends with a text, and what of it belongs to the
    assistant's next one.

    Raises:
        ValueError: the template does not show the turn, or not all of the answer.
    """
    before = [{"role": "user", "content": blocks_of("?")}, turn]
    text = _after(encoder.template.render([*before, *answer], tools), end)
    bare = [{**message, "content": _text_blocks(message)} for message in answer]
    images = sum(len(message["content"]) - len(kept["content"]) for message, kept in zip(answer, bare, strict=True))
    if images and text.count(_image_mark(encoder)) < images:  # a template that shows pictures in turns of users alone
        answer = _with_images_apart(answer, bare)
        text = _after(encoder.template.render([*before, *answer], tools), end)
    for block in (block for message in bare for block in message["content"]):
        if block["text"].strip() not in text:
            raise ValueError(
                f"this model's chat template does not show the results of tools ({block['text'][:40]!r} is missing); "
                "use --tool_format hermes"
            )
    return text, encoder.template.opening([*before, *answer], tools).by_template


def _after(whole: str, end: str) -> str:
    """The text after the turn in which PLACEHOLDER_TURN stands, which ends with another."""
    said = whole.rfind(PLACEHOLDER_TURN)
    if said < 0 or end not in whole[said:]:
        raise ValueError("this model's chat template does not show the assistant's calls; use --tool_format hermes")
    return whole[whole.index(end, said) + len(end) :]


def _image_mark(encoder: PromptEncoder) -> str:
    """What the chat template writes for an image in a turn of the user."""
    without, shown = (
        encoder.template.render([{"role": "user", "content": [*image, {"type": "text", "text": PLACEHOLDER_TURN}]}])
        for image in ([], [{"type": "image"}])
    )
    start = common_length(without, shown)
    return shown[start : len(shown) - common_length(without[start:][::-1], shown[start:][::-1])]


def _text_blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [block for block in message["content"] if block["type"] == "text"]


def _with_images_apart(answer: list[dict[str, Any]], bare: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The text of an answer, then a turn of the user with its images."""
    images = [block for message in answer for block in message["content"] if block["type"] != "text"]
    return [*bare, {"role": "user", "content": images}]


def _as_file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
