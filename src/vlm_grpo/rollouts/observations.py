"""Tool results as tokens and pixels: the observation between two turns of the assistant.

Only this turn is rendered and tokenised; the generated tokens stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.envs.environment import blocks_of
from vlm_grpo.envs.tool_parser import PLACEHOLDER_TURN, ToolParser, ToolResult
from vlm_grpo.records import Block, ImageRef, JsonSchema, Message
from vlm_grpo.rollouts.chat_template import common_length
from vlm_grpo.rollouts.encoder import PER_TOKEN_FIELDS, TEXT_KEYS, PromptEncoder, pin_on_host
from vlm_grpo.rollouts.segment import CompletionSegment


def encode_results(
    encoder: PromptEncoder,
    tool_parser: ToolParser,
    results: Sequence[ToolResult],
    last_token_id: int,
    tools: Sequence[JsonSchema] | None = None,
) -> CompletionSegment:
    """Return the turn with the tool results, up to the header of the assistant's next turn.

    Args:
        last_token_id: ended the turn before; it is not repeated.
        tools: schemas, for a chat template that knows tools.
    """
    answer, images = _with_open_images(tool_parser.answer(results))
    turn, end = tool_parser.turn(results)
    text, opening = _render_results(encoder, turn, end, answer, tools)
    tokenizer = encoder.tokenizer
    for token in (tokenizer.convert_ids_to_tokens(last_token_id), tokenizer.eos_token):
        if isinstance(token, str) and token and text.startswith(token):
            text = text.removeprefix(token)
            break
    if images and encoder.cached_image_processor is None:
        raise ValueError("a tool has returned an image, and this model reads text alone; return text")
    if not images:
        return CompletionSegment(tokenizer(text, add_special_tokens=False)["input_ids"], {}, {}, [], opening)
    out = encoder.base_processor(
        text=[text], images=images, text_kwargs={"add_special_tokens": False}, return_tensors="pt"
    )
    encoder.counters.processed += len(images)
    return CompletionSegment(
        ids=out["input_ids"][0].tolist(),
        per_token={name: out[name][0].tolist() for name in PER_TOKEN_FIELDS if name in out},
        visual={k: pin_on_host(torch.as_tensor(v)) for k, v in out.items() if k not in (*TEXT_KEYS, *PER_TOKEN_FIELDS)},
        refs=[ImageRef(_png_bytes(image)) for image in images],  # a checkpoint can keep files
        opening=opening,
    )


def _with_open_images(messages: Sequence[Message]) -> tuple[list[Message], list[Image.Image]]:
    """Return the messages with empty image blocks, and the decoded images in their order."""
    images, messages_without_images = [], []
    for message in messages:
        blocks = blocks_of(message["content"])
        images += [open_image(image_ref(block["image"])) for block in blocks if block["type"] == "image"]
        messages_without_images.append({**message, "content": without_images(blocks)})
    return messages_without_images, images


def without_images(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks with empty image blocks."""
    return [{"type": "image"} if block["type"] == "image" else dict(block) for block in blocks]


def _render_results(
    encoder: PromptEncoder, turn: Message, end: str, answer: list[Message], tools: Sequence[JsonSchema] | None
) -> tuple[str, str]:
    """Return what the chat template renders after an assistant turn that ends with `end`, and the opening of the next.

    Raises:
        ValueError: the template does not show the turn, or not all of the answer.
    """
    before = [{"role": "user", "content": blocks_of("?")}, turn]
    text = _text_after_turn(encoder.template.render([*before, *answer], tools), end)
    text_only = [{**message, "content": _text_blocks(message)} for message in answer]
    images = sum(
        len(message["content"]) - len(kept["content"]) for message, kept in zip(answer, text_only, strict=True)
    )
    if images and text.count(_image_placeholder(encoder)) < images:  # a template that renders images in user turns only
        answer = _move_images_to_user_turn(answer, text_only)
        text = _text_after_turn(encoder.template.render([*before, *answer], tools), end)
    for block in (block for message in text_only for block in message["content"]):
        if block["text"].strip() not in text:
            raise ValueError(
                f"this model's chat template does not show the results of tools ({block['text'][:40]!r} is missing); "
                "use --tool_format hermes"
            )
    return text, encoder.template.opening([*before, *answer], tools).from_template


def _text_after_turn(whole: str, end: str) -> str:
    """Return the text after the turn that contains PLACEHOLDER_TURN and ends with `end`."""
    start = whole.rfind(PLACEHOLDER_TURN)
    if start < 0 or end not in whole[start:]:
        raise ValueError("this model's chat template does not show the assistant's calls; use --tool_format hermes")
    return whole[whole.index(end, start) + len(end) :]


def _image_placeholder(encoder: PromptEncoder) -> str:
    """Return what the chat template renders for an image in a user turn."""
    without, with_image = (
        encoder.template.render([{"role": "user", "content": [*image, {"type": "text", "text": PLACEHOLDER_TURN}]}])
        for image in ([], [{"type": "image"}])
    )
    start = common_length(without, with_image)
    return with_image[start : len(with_image) - common_length(without[start:][::-1], with_image[start:][::-1])]


def _text_blocks(message: Message) -> list[Block]:
    return [block for block in message["content"] if block["type"] == "text"]


def _move_images_to_user_turn(answer: list[Message], text_only: list[Message]) -> list[Message]:
    """Return the text of an answer, then a user turn with its images."""
    images = [block for message in answer for block in message["content"] if block["type"] != "text"]
    return [*text_only, {"role": "user", "content": images}]


def _png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
