from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rewards.server import JudgeServer, strict


@pytest.fixture(scope="session", autouse=True)
def judge_in_the_environment() -> Iterator[None]:
    """A server on the loopback that judges for every test that goes through all rewards or methods."""
    with JudgeServer(strict) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_MODEL", "strict")
        patch.setenv("JUDGE_BASE_URL", server.url)
        patch.delenv("JUDGE_API_KEY", raising=False)
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield
