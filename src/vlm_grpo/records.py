"""One example, after any source format has been read and before any image has been decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Shapes of data that come from outside or go there. What their values hold is up to a file, a chat template or a model,
# so whoever reads a value checks it first.
Row = Mapping[str, Any]  # a row of data, by column: text, numbers, lists, images
NewRow = dict[str, Any]  # a row that is being made
JsonObject = dict[str, Any]  # an object of JSON, as it was read or is written
JsonSchema = Mapping[str, Any]  # a JSON schema, of a tool or of its arguments
Message = dict[str, Any]  # a chat message: "role", "content" (text or blocks), and "tool_calls" of a model's turn
Block = dict[str, Any]  # a part of a message: {"type": "text", "text": ...} or {"type": "image", "image": ...}
Conversation = list[Message]
Completion: TypeAlias = "str | Sequence[Message] | None"  # what a policy wrote: text, or its turn as messages
Columns = Mapping[str, Any]  # columns of a batch by name, a value for each row, and what TRL passes beside them
ModelInputs = dict[str, Any]  # keyword arguments of a model's forward: tensors, and what a family adds
Prediction = dict[str, Any]  # a line of predictions.jsonl: a row's completions with their scores

Value = TypeVar("Value")
ImageSource: TypeAlias = "str | bytes | Image.Image"
VideoSource: TypeAlias = "str | bytes | np.ndarray | tuple[ImageRef, ...]"


@dataclass(frozen=True)
class ImageRef:
    """An image that is decoded only when a rollout needs it.

    `source` is a path or URL, the undecoded bytes of an image file, or an image that the caller decoded (PIL).
    `where` names the line that asked for it, so that an error can too. Only where `is_private_allowed` may a URL lead
    to this machine or a private network.
    """

    source: ImageSource
    where: str = ""
    is_private_allowed: bool = False

    @cached_property
    def key(self) -> Hashable:
        """Equal for two references to the same image, so that each image is decoded and processed once."""
        if isinstance(self.source, bytes):
            return hashlib.blake2b(self.source, digest_size=16).hexdigest()
        return self.source if isinstance(self.source, str) else id(self.source)


@dataclass(frozen=True)
class VideoRef:
    """A video that is decoded only when a rollout needs it.

    `source` is a path or URL, the bytes of a video file, an array of frames, or a tuple of `ImageRef` frames. `fps` is
    the rate at which frames are taken of a file, or were taken before; None is the default.
    """

    source: VideoSource
    where: str = ""
    fps: float | None = None
    max_frames: int | None = None
    is_private_allowed: bool = False

    @cached_property
    def key(self) -> Hashable:
        """Equal for two references to the same video at the same rate."""
        if isinstance(self.source, tuple):
            content: Hashable = tuple(frame.key for frame in self.source)
        elif isinstance(self.source, str | bytes):
            content = ImageRef(self.source).key
        else:
            content = id(self.source)
        return "video", content, self.fps, self.max_frames


@dataclass(frozen=True)
class Record:
    """One example: question, ground truth, and everything that a reward may need.

    `question` keeps its `<image>` markers in place. `answer` is whatever the source held: text, a number, a list or a
    dict. `method` is the record's own way to score accuracy (`accu_reward_method`). `extra` holds all other columns.
    """

    id: str | int
    question: str
    answer: object
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()
    system: str | None = None
    history: tuple[Message, ...] = ()
    task: str = "default"
    method: str | None = None
    options: tuple[str, ...] = ()
    reference_steps: tuple[str, ...] = ()
    where: str = ""
    extra: Row = field(default_factory=dict)


def required(value: Value | None, what: str) -> Value:
    """Return a value that has to be there by now.

    Raises:
        ValueError: it is None.
    """
    if value is None:
        raise ValueError(f"{what} is missing")
    return value
