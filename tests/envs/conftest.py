from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.envs.sandboxes import SECRET, new_sandbox
from vlm_grpo.envs.sandbox import Sandbox
from vlm_grpo.envs.sandbox.process import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    made = new_sandbox(request.param)
    yield made
    made.close()


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that every user of the machine can read and write, with a file that says SECRET."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "secret.txt").write_text(SECRET)
        (folder / "secret.txt").chmod(0o666)
        folder.chmod(0o777)
        yield folder
