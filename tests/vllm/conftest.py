"""One vLLM engine on the CPU for the tests of a file: they are skipped where vllm is not installed.

An engine is not freed in its process, so each file of this folder is run by a process of its own.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from vlm_grpo.rollouts.engines.engine import RolloutEngine
from vlm_grpo.rollouts.engines.table import ENGINES, EngineRun, make_vllm
from vlm_grpo.tiny import TinySize, save_tiny_qwen

if find_spec("vllm") is not None:  # elsewhere this file is read, too, and others' tests compile
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than the tests
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

UNTIED = TinySize(hidden=64, intermediate=128, vision_hidden=64, is_tied=False)  # vLLM's CPU heads are at least 32 wide
OPTIONS = {"enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 4096, "max_num_seqs": 32}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them without vllm."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("vllm")
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Qwen2.5-VL whose head is not its embeddings."""
    return save_tiny_qwen(tmp_path_factory.mktemp("untied"), UNTIED)


@pytest.fixture(scope="session")
def make_once() -> Iterator[Callable[[EngineRun], RolloutEngine]]:
    """Make an engine for the first run, and hand it to the next ones with their settings."""
    made: list[RolloutEngine] = []

    def make(run: EngineRun) -> RolloutEngine:
        if not made:
            made.append(make_vllm(dataclasses.replace(run, options={**OPTIONS, **run.options})))
        made[0].sampling = run.sampling
        return made[0]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def one_engine(make_once: Callable[[EngineRun], RolloutEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `--rollout_engine vllm` be the engine that all tests of a file share."""
    monkeypatch.setitem(ENGINES, "vllm", dataclasses.replace(ENGINES["vllm"], make=make_once))
