"""From a data row to chat messages with empty media blocks, and the images and videos that fill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from trl.data_utils import prepare_multimodal_messages

from vlm_grpo.data.images import image_ref
from vlm_grpo.data.videos import video_ref
from vlm_grpo.records import Block, Conversation, ImageRef, Message, Row, VideoRef

MEDIA_COLUMNS = ("images", "image", "videos", "video")


class Prompt(NamedTuple):
    """Messages with empty image and video blocks, and the media that fill them, in the order of the blocks.

    `raw_prompt` is the prompt as the row has it, for a row without media: there TRL leaves strings as they are.
    """

    messages: list[Message] | str
    images: list[ImageRef]
    videos: list[VideoRef]
    raw_prompt: Conversation | str | None = None


def read_prompt(row: Row) -> Prompt:
    """Return the prompt of a data row.

    Accepts every form that TRL documents (`images` or `image` columns, lists that may be None or empty, images inside
    the messages, decoded or as the `{bytes, path}` dicts that Arrow makes of them), and `videos` or `video` columns or
    video blocks of the same kinds. Videos of messages without video blocks come first.

    Raises:
        ValueError: media and placeholders differ in number, or a plain-text prompt comes with media.
    """
    where = str(row.get("where", ""))
    images = [_as_image_ref(value, where) for value in _column_values(row, "images", "image")]
    videos = [video_ref(value, where) for value in _column_values(row, "videos", "video")]
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if images or videos:
            raise ValueError(f"{where or 'a row'}: a prompt with images must be a list of messages, got plain text")
        return Prompt(prompt, [], [], prompt)
    raw_prompt = [_drop_none_values(message) for message in prompt]
    try:
        messages = prepare_multimodal_messages(raw_prompt, images=images)
    except ValueError as error:
        raise ValueError(f"{where or 'a row'}: {error}") from error
    result = _extract_media(_with_video_blocks(messages, videos, where), where)
    return result if result.images or result.videos else result._replace(raw_prompt=raw_prompt)


def _column_values(row: Row, many: str, one: str) -> list[object]:
    """Return the values of a column of lists, or of a column of single values; None is no value."""
    value = row.get(many) if row.get(many) is not None else row.get(one)
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _as_image_ref(value: object, where: str) -> ImageRef:
    return value if isinstance(value, ImageRef) else image_ref(value, where)


def _drop_none_values(message: Message) -> Message:
    """Return the message without None values: Arrow adds the keys of all content blocks to each of them."""
    content = message.get("content")
    if not isinstance(content, list):
        return {k: v for k, v in message.items() if v is not None}
    return {**message, "content": [{k: v for k, v in block.items() if v is not None} for block in content]}


def _with_video_blocks(messages: list[Message], videos: Sequence[VideoRef], where: str) -> list[Message]:
    """Return the messages with every video in a video block; without any block they begin the first user turn."""
    empty = sum(block["type"] == "video" and "video" not in block for block in _blocks(messages))
    if empty == 0 and videos:
        first = next((number for number, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            raise ValueError(f"{where or 'a row'}: {len(videos)} videos and no user turn to show them in")
        added = [{"type": "video", "video": ref} for ref in videos]
        turn = {**messages[first], "content": [*added, *messages[first]["content"]]}
        return [*messages[:first], turn, *messages[first + 1 :]]
    if empty != len(videos):
        raise ValueError(f"{where or 'a row'}: {len(videos)} videos for {empty} empty video blocks")
    remaining = iter(videos)
    return _map_blocks(
        messages, "video", lambda block: block if "video" in block else {**block, "video": next(remaining)}
    )


def _extract_media(messages: list[Message], where: str) -> Prompt:
    images = [_as_image_ref(block["image"], where) for block in _blocks(messages) if block["type"] == "image"]
    videos = [video_ref(block["video"], where) for block in _blocks(messages) if block["type"] == "video"]
    for kind in ("image", "video"):
        messages = _map_blocks(messages, kind, lambda block: {"type": block["type"]})
    return Prompt(messages, images, videos)


def fill_media(messages: list[Message], images: Sequence[object], videos: Sequence[object]) -> list[Message]:
    """Return the messages with their media blocks filled, in order."""
    next_images, next_videos = iter(images), iter(videos)
    messages = _map_blocks(messages, "image", lambda block: {**block, "image": next(next_images)})
    return _map_blocks(messages, "video", lambda block: {**block, "video": next(next_videos)})


def check_text(messages: Sequence[Message] | str, placeholders: Sequence[str], where: str) -> None:
    """Check that no text contains a placeholder that the processor would expand.

    Raises:
        ValueError: a turn holds a placeholder that stands for nothing.
    """
    for message in () if isinstance(messages, str) else messages:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else "".join(block.get("text", "") for block in _blocks([message]))
        for mark in placeholders:
            if mark in text:
                raise ValueError(
                    f"{where or 'a row'}: the text of a turn of the {message['role']} holds {mark!r}, which the "
                    "processor takes for an image or video; remove it, or put an image block there"
                )


def _blocks(messages: Sequence[Message]) -> Iterator[Block]:
    for message in messages:
        content = message.get("content")
        yield from content if isinstance(content, list) else []


def _map_blocks(messages: Sequence[Message], kind: str, convert: Callable[[Block], Block]) -> list[Message]:
    """Return new messages in which every block of a kind is converted."""
    return [
        {**message, "content": [convert(block) if block["type"] == kind else block for block in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
