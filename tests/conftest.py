from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Chosen with --hypothesis-profile.
settings.register_profile("default", max_examples=300, deadline=None)
settings.register_profile("extended", max_examples=10_000, deadline=None)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--extended", action="store_true", help="run the slower campaigns too, those marked extended")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """GPU tests need a GPU, extended ones are asked for; tests without torch run first."""
    import torch

    if not config.getoption("--extended"):
        for item in items:
            if "extended" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="runs with --extended"))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    items.sort(key=lambda item: ("multiprocess" in item.keywords, "trainers" in str(item.path)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2.5-VL of about 0.1 M parameters and its processor."""
    from vlm_grpo.tiny import save_tiny_qwen

    folder = tmp_path_factory.mktemp("tiny_qwen")
    save_tiny_qwen(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, written when it is first asked for; nothing may be changed in it."""
    from tests.support.families import FAMILIES_TINY

    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            FAMILIES_TINY[family](root / family)
        return root / family

    return folder
