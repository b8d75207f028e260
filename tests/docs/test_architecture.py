"""docs/architecture.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.sub(r"```.*?```", "", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.DOTALL)
SOURCE = ROOT / "src" / "vlm_grpo"
CODE = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))


def quoted() -> list[str]:
    """Return the single words in code style."""
    return sorted(set(re.findall(r"`([^`\s]+)`", TEXT)))


@pytest.mark.parametrize("path", [part for part in quoted() if re.fullmatch(r"[\w/]+/[\w/]*(\.py)?", part)])
def test_paths_exist(path: str):
    assert any((root / path).exists() for root in (ROOT, SOURCE)), path


@pytest.mark.parametrize("name", [part for part in quoted() if re.fullmatch(r"[A-Z]\w+[a-z]\w*(\.\w+)*", part)])
def test_classes_and_methods_exist(name: str):
    kind, *method = name.split(".")
    assert kind in ("Any", "GRPOTrainer", "RLOOTrainer") or re.search(rf"^\s*class {kind}\b", CODE, re.MULTILINE), name
    assert all(re.search(rf"\bdef {each}\b", CODE) for each in method), name
