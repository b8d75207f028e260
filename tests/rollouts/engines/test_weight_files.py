from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config

from tests.support.fake_vllm import FakeVLLM
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerPool
from vlm_grpo.rollouts.engines.vllm_server import VLLMServerKind
from vlm_grpo.rollouts.engines.weight_files import Everyone, FileTransfer, WeightFiles

CONFIG = Qwen2Config(num_hidden_layers=1)


def tensors(count: int = 3) -> dict[str, torch.Tensor]:
    return {f"w{number}": torch.full((4, 2), float(number)) for number in range(count)}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_files_hold_the_weights(tmp_path: Path):
    files = WeightFiles(tmp_path, CONFIG)
    files.write("a", tensors().items())
    assert (tmp_path / "a" / "config.json").exists()
    assert all(torch.equal(loaded(tmp_path / "a")[name], value) for name, value in tensors().items())


def test_large_weights_are_split(tmp_path: Path):
    """Each tensor has 32 bytes: two fit into a file of 70."""
    WeightFiles(tmp_path, CONFIG, largest_file=70).write("a", tensors(5).items())
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 3
    assert loaded(tmp_path / "a").keys() == tensors(5).keys()


def test_a_gathered_tensor_is_copied_at_once(tmp_path: Path):
    """The memory of a gathered parameter is used again for the next one."""

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        buffer = torch.zeros(2)
        for number in range(3):
            yield f"w{number}", buffer.fill_(number)

    WeightFiles(tmp_path, CONFIG).write("a", gathered())
    assert [value[0].item() for value in loaded(tmp_path / "a").values()] == [0.0, 1.0, 2.0]


def test_an_interrupted_write_is_no_folder_of_weights(tmp_path: Path):
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "w0", torch.zeros(2)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        WeightFiles(tmp_path, CONFIG, largest_file=1).write("a", broken())
    assert not (tmp_path / "a").exists()


def test_one_folder_is_kept(tmp_path: Path):
    files = WeightFiles(tmp_path, CONFIG)
    (tmp_path / "old.partial").mkdir()
    for name in ("a", "b"):
        files.write(name, tensors().items())
    files.remove_others("b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def transfer(fake: FakeVLLM, folder: Path, waits: list[str], *, is_main: bool) -> FileTransfer:
    client = ServerClient(fake.url, seconds=5.0)
    pool = ServerPool([client], VLLMServerKind("tiny", CONFIG, 10, "raw_logprobs"), wait_seconds=5.0, concurrency=2)
    everyone = Everyone("run", is_main, lambda: waits.append("wait"))
    return FileTransfer(pool, WeightFiles(folder, CONFIG), everyone)


def test_the_main_process_writes_and_all_iterate_to_the_end(tmp_path: Path):
    """Gathering is collective: a process that does not write iterates as well."""
    fake, waits, iterated = FakeVLLM().start(), [], []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("weight", "other"):
            yield name, torch.tensor(7)
            iterated.append(name)

    other = transfer(fake, tmp_path, waits, is_main=False)
    other.update(weights())
    assert iterated == ["weight", "other"]
    assert fake.loads == [] and not any(tmp_path.iterdir())
    transfer(fake, tmp_path, waits, is_main=True).update(weights())
    assert fake.loads == ["run-000001"]
    assert other.pool.weights is not None and other.pool.weights.are_of(fake.weight_version)
    assert len(waits) == 6
    fake.stop()


def test_a_run_id_names_folders():
    with pytest.raises(ValueError, match="run_id"):
        Everyone("a/b", is_main=True, wait=lambda: None)
