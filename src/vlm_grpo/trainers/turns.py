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
from vlm_grpo.envs.protocol import Result, ToolProtocol
from vlm_grpo.records import ImageRef
from vlm_grpo.trainers.later import Later
from vlm_grpo.trainers.rollout import PER_TOKEN, TEXT_KEYS, PromptEncoder, on_host

SAID = "(a turn of the assistant)"  # stands for what was generated while the text around results is rendered


def encode_results(
    encoder: PromptEncoder,
    protocol: ToolProtocol,
    results: Sequence[Result],
    last: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Later:
    """The turn that hands results to the model and begins its next one.

    Args:
        last: the token that ended the turn before; it is not repeated.
        tools: schemas, for a chat template that knows tools.
    """
    messages, images = _with_open_images(protocol.answer(results))
    text, opening = _text_after(encoder, messages, tools)
    tokenizer = encoder.plain.tokenizer
    for end in (tokenizer.convert_ids_to_tokens(last), tokenizer.eos_token):
        if end and text.startswith(end):
            text = text.removeprefix(end)
            break
    if not images:
        return Later(tokenizer(text, add_special_tokens=False)["input_ids"], {}, {}, [], opening)
    out = encoder.plain(text=[text], images=images, text_kwargs={"add_special_tokens": False}, return_tensors="pt")
    encoder.counters.processed += len(images)
    return Later(
        ids=out["input_ids"][0].tolist(),
        per_token={name: out[name][0].tolist() for name in PER_TOKEN if name in out},
        visual={k: on_host(torch.as_tensor(v)) for k, v in out.items() if k not in (*TEXT_KEYS, *PER_TOKEN)},
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


def _text_after(encoder: PromptEncoder, messages: list[dict[str, Any]], tools: Any) -> tuple[str, str]:
    """What the chat template writes after a turn of the assistant that these messages follow, and what of it belongs
    to the next one.
    """
    before = [{"role": role, "content": blocks_of(text)} for role, text in (("user", "?"), ("assistant", SAID))]
    text = encoder.template.render([*before, *messages], tools)
    return text[text.index(SAID) + len(SAID) :], encoder.template.opening([*before, *messages], tools).by_template


def _as_file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
