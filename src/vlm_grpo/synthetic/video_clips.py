"""Videos of a moving shape: alternating lists of frames and, with PyAV, mp4 files (`video`, task `default`)."""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from random import Random

from PIL import Image

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.shape_scenes import COLORS, GROUNDS, KINDS, Shape, draw

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FRAMES = 8
RATE = 4  # frames per second of an mp4 file; sampling at 2 fps, the usual default, takes half of them


def video_example(random: Random, number: int, side: int) -> Example:
    """Return a video of eight frames; every second example is an mp4 file if PyAV is installed.

    Raises:
        ValueError: the side is odd, which mp4 does not support.
    """
    shape = Shape(random.choice(KINDS), random.choice(list(COLORS)), 0.5, 0.5, random.uniform(0.08, 0.14))
    way = random.choice(list(WAYS))
    frames = _frames(random, shape, WAYS[way], side)
    question = f"<video>Which way does the {shape.name} move: left, right, up or down?"
    if number % 2 and find_spec("av") is not None:
        return Example(question, way, clip=mp4(frames))
    return Example(question, way, frames=tuple(frames))


def _frames(random: Random, shape: Shape, way: tuple[int, int], side: int) -> list[Image.Image]:
    """Draw the shape moving across most of the image, swaying a little."""
    ground, offset, sway = random.choice(GROUNDS), random.uniform(0.3, 0.7), random.uniform(0.0, 0.05)
    reach = 0.5 - shape.radius - 0.04
    frames = []
    for number in range(FRAMES):
        along = reach * (2 * number / (FRAMES - 1) - 1)
        across = offset - 0.5 + sway * math.sin(2 * math.pi * number / FRAMES)
        x, y = (0.5 + along * way[0], 0.5 + across) if way[0] else (0.5 + across, 0.5 + along * way[1])
        frames.append(draw([Shape(shape.kind, shape.color, x, y, shape.radius)], side, ground))
    return frames


def mp4(frames: list[Image.Image]) -> bytes:
    """Return the frames as an mp4 file (MPEG-4 part 2) with RATE frames per second.

    Raises:
        ValueError: width or height is odd.
    """
    import av

    width, height = frames[0].size
    if width % 2 or height % 2:
        raise ValueError(f"--side must be even for mp4 files, got {width}")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()
