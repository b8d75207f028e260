from __future__ import annotations

from typing import Any

import pytest

from vlm_grpo.data import load_dataset
from vlm_grpo.synthetic import DigitFiles, write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitFiles:
    """The digits data set on disk."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def rows(digits: DigitFiles) -> Any:
    """Held-out digits as data rows."""
    return load_dataset(str(digits.held_out), image_folders=str(digits.images))
