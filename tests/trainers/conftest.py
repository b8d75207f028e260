"""Fixtures of the trainers' tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.scripted import scripted_of
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.engines.transformers import TransformersEngine


@pytest.fixture
def same_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that depend on prompt and row alone, so that runs can be compared."""
    sample = TransformersEngine.generate

    def generate(self: TransformersEngine, prompts: Sequence[EncodedPrompt], **options: Any) -> Generation:
        sample(self, prompts, **options)
        return scripted_of(prompts)

    monkeypatch.setattr(TransformersEngine, "generate", generate)
