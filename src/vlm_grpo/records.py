"""One example, after any source format has been read and before any image has been decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class ImageRef:
    """An image that is decoded only when a rollout needs it.

    `source` is a path or URL, the undecoded bytes of an image file, or an image that the caller decoded (PIL).
    `where` names the line that asked for it, so that an error can too. Only where `is_private_allowed` may a URL lead
    to this machine or a private network.
    """

    source: Any
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

    source: Any
    where: str = ""
    fps: float | None = None
    max_frames: int | None = None
    is_private_allowed: bool = False

    @cached_property
    def key(self) -> Hashable:
        """Equal for two references to the same video at the same rate."""
        if isinstance(self.source, tuple):
            content: Hashable = tuple(frame.key for frame in self.source)
        else:
            content = ImageRef(self.source).key
        return "video", content, self.fps, self.max_frames


@dataclass(frozen=True)
class Record:
    """One example: question, ground truth, and everything that a reward may need.

    `question` keeps its `<image>` markers in place. `answer` is whatever the source held: text, a number, a list or a
    dict. `method` is the record's own way to score accuracy (`accu_reward_method`). `extra` holds all other columns.
    """

    id: str | int
    question: str
    answer: Any
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()
    system: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    task: str = "default"
    method: str | None = None
    options: tuple[str, ...] = ()
    reference_steps: tuple[str, ...] = ()
    where: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
