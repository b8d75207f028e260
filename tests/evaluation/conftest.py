from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.data import load_dataset
from vlm_grpo.synthetic import DigitFiles, write_digits
from vlm_grpo.tiny import build_tiny_qwen


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitFiles:
    """The digits data set on disk."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def rows(digits: DigitFiles) -> Any:
    """Held-out digits as data rows."""
    return load_dataset(str(digits.held_out), image_folders=str(digits.images))


@pytest.fixture
def mixed_file(tmp_path: Path) -> Path:
    """Six rows with no, one or two images of different sizes, and questions of different lengths."""
    import json

    from PIL import Image

    lines = []
    for index in range(6):
        names = [f"{index}_{number}.png" for number in range(index % 3)]
        for number, name in enumerate(names):
            Image.new("RGB", (56 + 28 * index, 56 + 28 * number), (40 * index, 200, 10)).save(tmp_path / name)
        question = "<image>" * len(names) + "What color is the shape? " * (index + 1)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]
        lines.append({"id": index, "conversations": turns, **({"image": names} if names else {})})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def tiny() -> tuple[Any, Any]:
    """A random model and its processor."""
    return build_tiny_qwen()
