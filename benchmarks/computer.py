"""What a benchmark ran on: the card with its driver, or the CPU, and the versions of what was run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate", "peft", "vlm_grpo")


def describe() -> dict[str, str]:
    """Return names and versions, without anything that identifies one machine."""
    return {**_card(), "cores": str(os.cpu_count()), "python": platform.python_version(), **_versions()}


def in_words(computer: dict[str, str]) -> str:
    """Return what `describe` gave as one line."""
    card = computer["card"] if "card" in computer else f"CPU, {computer['cores']} cores"
    rest = [f"{name} {value}" for name, value in computer.items() if name not in ("card", "cores")]
    return ", ".join([card, *rest])


def _card() -> dict[str, str]:
    """Return name, memory and driver of the first GPU; nothing where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    name, memory, driver = (part.strip() for part in done.stdout.split(","))
    return {"card": f"{name} ({memory})", "driver": driver}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
