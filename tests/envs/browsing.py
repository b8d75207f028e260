"""What tests of rendered pages share."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import psutil
import pytest
from PIL import Image

from vlm_grpo.envs.browser.renderer import Render, find_chromium

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium")
WHITE, GREEN = (255, 255, 255), (0, 128, 0)
HURRY = 300  # seconds: far more than anything here takes, also on a busy machine


def colors(render: Render) -> set[tuple[int, ...]]:
    return {color for _, color in render.image().getcolors(2**24)}


def png(color: tuple[int, int, int], size: int = 50) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, format="PNG")
    return file.getvalue()


def said(render: Render) -> str:
    return "\n".join(line.text for line in render.lines or ())


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def is_spinning(process: psutil.Process) -> bool:
    try:
        return process.cpu_percent(0.3) > 10
    except psutil.NoSuchProcess:
        return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
