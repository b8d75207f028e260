"""From a data row to chat messages with empty placeholders, and the images and videos that belong into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trl.data_utils import prepare_multimodal_messages

from vlm_grpo.data.images import image_ref
from vlm_grpo.data.videos import video_ref
from vlm_grpo.records import ImageRef, VideoRef

MEDIA_COLUMNS = ("images", "image", "videos", "video")


class Prompt(NamedTuple):
    """Messages whose image and video blocks are empty, and what fills them, each in the order of its blocks.

    `given` is the prompt as the row has it, for a row without media: there TRL leaves strings as they are.
    """

    messages: list[dict[str, Any]] | str
    images: list[ImageRef]
    videos: list[VideoRef]
    given: list[dict[str, Any]] | str | None = None


def read_prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a data row.

    Accepts every form that TRL documents (`images` or `image` columns, lists that may be None or empty, images inside
    the messages, decoded or as the `{bytes, path}` dicts that Arrow makes of them), and `videos` or `video` columns or
    video blocks of the same kinds. Videos of messages without video blocks come first.

    Raises:
        ValueError: media and placeholders differ in number, or a plain-text prompt comes with media.
    """
    where = str(row.get("where", ""))
    images = [_image(value, where) for value in _given(row, "images", "image")]
    videos = [video_ref(value, where) for value in _given(row, "videos", "video")]
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if images or videos:
            raise ValueError(f"{where or 'a row'}: a prompt with images must be a list of messages, got plain text")
        return Prompt(prompt, [], [], prompt)
    given = [_without_nones(message) for message in prompt]
    try:
        messages = prepare_multimodal_messages(given, images=images)
    except ValueError as error:
        raise ValueError(f"{where or 'a row'}: {error}") from error
    found = _take_media(_with_video_blocks(messages, videos, where), where)
    return found if found.images or found.videos else found._replace(given=given)


def _given(row: Mapping[str, Any], many: str, one: str) -> list[Any]:
    """The values of a column of lists, or of a column of single values; None is no value."""
    value = row.get(many) if row.get(many) is not None else row.get(one)
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _image(value: Any, where: str) -> ImageRef:
    return value if isinstance(value, ImageRef) else image_ref(value, where)


def _without_nones(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow gives every content block every key; the ones that are None were never there."""
    content = message.get("content")
    if not isinstance(content, list):
        return {k: v for k, v in message.items() if v is not None}
    return {**message, "content": [{k: v for k, v in block.items() if v is not None} for block in content]}


def _with_video_blocks(messages: list[dict[str, Any]], videos: Sequence[VideoRef], where: str) -> list[dict[str, Any]]:
    """The messages with every video in an empty video block; without any block they begin the first user turn."""
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
    return _replaced(
        messages, "video", lambda block: block if "video" in block else {**block, "video": next(remaining)}
    )


def _take_media(messages: list[dict[str, Any]], where: str) -> Prompt:
    images = [_image(block["image"], where) for block in _blocks(messages) if block["type"] == "image"]
    videos = [video_ref(block["video"], where) for block in _blocks(messages) if block["type"] == "video"]
    for kind in ("image", "video"):
        messages = _replaced(messages, kind, lambda block: {"type": block["type"]})
    return Prompt(messages, images, videos)


def fill(messages: list[dict[str, Any]], images: Sequence[Any], videos: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages with their placeholders filled, in order."""
    for kind, media in (("image", iter(images)), ("video", iter(videos))):
        messages = _replaced(messages, kind, lambda block, kind=kind, media=media: {**block, kind: next(media)})
    return messages


def check_text(messages: Sequence[Mapping[str, Any]] | str, placeholders: Sequence[str], where: str) -> None:
    """Refuse text that the processor would take for an image or video.

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


def _blocks(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content")
        yield from content if isinstance(content, list) else []


def _replaced(messages: Sequence[dict[str, Any]], kind: str, change: Any) -> list[dict[str, Any]]:
    """New messages in which every block of a kind is changed."""
    return [
        {**message, "content": [change(block) if block["type"] == kind else block for block in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
