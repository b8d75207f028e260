from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Chosen with --hypothesis-profile.
settings.register_profile("default", max_examples=300, deadline=None)
settings.register_profile("extended", max_examples=10_000, deadline=None)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests need a GPU; tests without torch run first."""
    import torch

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
