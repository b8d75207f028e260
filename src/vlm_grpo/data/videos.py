"""References to videos (files or lists of frames), and the only place where videos are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_grpo.data.errors import MediaError
from vlm_grpo.data.images import (
    DECODE_ERRORS,
    URL_STARTS,
    decode_error,
    image_ref,
    media_name,
    media_source,
    open_image,
)
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.web import Limits

VIDEO_LIMITS = Limits(size=1024 * 2**20, seconds=300.0)
FPS = 2.0  # sampling rate of video files, as in Qwen's preprocessing
MAX_FRAMES = 64


class Clip(NamedTuple):
    """Decoded frames, uint8 (T, H, W, 3), and their rate per second."""

    frames: np.ndarray
    fps: float


def video_ref(value: object, where: str = "", *, fps: float | None = None, max_frames: int | None = None) -> VideoRef:
    """Return a reference to a video: path, URL, bytes, frames, array, or `{"video": ..., "fps", "max_frames"}`.

    `fps` is the sampling rate of a file, or the rate at which a list of frames was sampled.
    Nothing is decoded.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, VideoRef):
        return value
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("video", "frames", "bytes", "path") if value.get(key) is not None), None)
        return video_ref(inner, where, fps=value.get("fps") or fps, max_frames=value.get("max_frames") or max_frames)
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return VideoRef(value, where, fps, max_frames)
    if isinstance(value, list | tuple) and value:
        return VideoRef(tuple(image_ref(frame, where) for frame in value), where, fps, max_frames)
    if isinstance(value, str | bytes) and value:
        return VideoRef(value, where, fps, max_frames)
    expected = "a path, URL, bytes, a list of frames or an array (T, H, W, 3)"
    raise ValueError(f"{where or 'a row'}: a video must be {expected}, got {value!r:.80}")


FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def video_items(value: object) -> list[object]:
    """Return the videos in a column, one or a list. A list of image files means the frames of one video."""
    if not isinstance(value, list | tuple):
        return [value]
    files = all(isinstance(item, str) for item in value)
    if files and all(Path(item).suffix.lower() in FRAME_SUFFIXES for item in value):
        return [list(value)]
    return list(value)


FrameCount = Callable[[int, float, float, int], int]


def frame_count(total: int, rate: float, fps: float, limit: int) -> int:
    """Return the number of frames to sample at `fps` from `total` frames at `rate` per second, 1 to `limit`."""
    return max(1, min(limit, total, round(total / rate * fps)))


def qwen_frame_count(total: int, rate: float, fps: float, limit: int) -> int:
    """Return the frame count by the rule of the Qwen families: even, and at least 4 if available.

    Raises:
        ImportError: qwen-vl-utils is not installed (extra `video`).
    """
    try:
        from qwen_vl_utils.vision_process import smart_nframes
    except ImportError as error:
        raise ImportError("videos for a Qwen model need qwen-vl-utils: pip install 'vlm_grpo[video]'") from error
    return total if total < 2 else smart_nframes({"fps": fps, "max_frames": min(limit, total)}, total, rate)


def open_video(ref: VideoRef, count: FrameCount = frame_count) -> Clip:
    """Decode a video: files are sampled at `fps`, lists of frames are thinned to `max_frames`.

    `count` computes the number of sampled frames, which are evenly spaced.

    Raises:
        ValueError: the video is missing, has no frames or cannot be decoded; the message names `ref.where`.
        ImportError: PyAV is not installed, which video files need (extra `video`).
    """
    limit = ref.max_frames or MAX_FRAMES
    if isinstance(ref.source, np.ndarray):
        return _thinned(ref.source.astype(np.uint8, copy=False), ref.fps or FPS, limit)
    if isinstance(ref.source, tuple):
        return _thinned(_stacked(ref.source, ref.where), ref.fps or FPS, limit)
    return _decoded(ref, limit, count)


def validate_video(ref: VideoRef, *, decode: bool = False) -> str | None:
    """Return why a video is invalid, else None; without `decode`, only check that the file exists and is not empty."""
    if isinstance(ref.source, str) and not ref.source.startswith(URL_STARTS):
        try:
            check_regular(ref.source)
        except OSError as error:
            return decode_error(error)
        if not os.path.getsize(ref.source):
            return "the file is empty"
    if not decode or not isinstance(ref.source, str | bytes):
        return None
    try:
        open_video(ref)
    except ValueError as error:
        return (
            decode_error(error.__cause__) if error.__cause__ else str(error).removeprefix(f"{ref.where or 'video'}: ")
        )
    return None


def _stacked(refs: Sequence[ImageRef], where: str) -> np.ndarray:
    frames = [np.asarray(open_image(ref)) for ref in refs]
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"{where or 'video'}: the frames of a video must have the same size, got {sorted(sizes)}")
    return np.stack(frames)


def _thinned(frames: np.ndarray, fps: float, limit: int) -> Clip:
    """Return at most `limit` evenly spaced frames and their frame rate."""
    if len(frames) <= limit:
        return Clip(frames, fps)
    return Clip(frames[_spread(len(frames), limit)], fps * limit / len(frames))


def _spread(total: int, count: int) -> np.ndarray:
    """Return `count` evenly spaced positions of `total`, from the first to the last."""
    return np.linspace(0, total - 1, count).round().astype(int)


def _decoded(ref: VideoRef, limit: int, count: FrameCount) -> Clip:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video files needs PyAV: pip install 'vlm_grpo[video]'") from error
    try:
        with av.open(media_source(ref, VIDEO_LIMITS), mode="r") as container:
            if not container.streams.video:
                raise ValueError("there is no video stream in it")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or FPS)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (*DECODE_ERRORS, av.error.FFmpegError) as error:
        source = media_name(ref.source) if isinstance(ref.source, str) else "an embedded video"
        raise MediaError(f"{ref.where or 'video'}: cannot decode {source}: {decode_error(error)}") from error
    if not frames:
        raise MediaError(f"{ref.where or 'video'}: the video has no frames")
    sampled_count = count(len(frames), rate, ref.fps or FPS, limit)
    return Clip(
        np.stack([frames[number] for number in _spread(len(frames), sampled_count)]), sampled_count * rate / len(frames)
    )
