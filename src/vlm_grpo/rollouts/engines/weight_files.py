"""Weights of a policy as files, for servers that see the same folder; each update is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from vlm_grpo.rollouts.engines.engine import NamedTensor
from vlm_grpo.rollouts.engines.servers import ServerPool, Weights

LARGEST_FILE = 4 * 2**30  # bytes of a file, and of the tensors that are in memory while it is gathered
RUN_ID = re.compile(r"[\w.-]+")


class WholeFolder:
    """Folders of which each is there only when it is complete and on the disk.

    Args:
        folder: holds them; nothing else should be in it.
        prefix: of their names.
    """

    def __init__(self, folder: str | Path, prefix: str = "") -> None:
        self.folder, self.prefix = Path(folder).absolute(), prefix

    def path(self, name: str) -> Path:
        """Return the folder of this name."""
        return self.folder / name

    def write(self, name: str, tensors: Iterable[NamedTensor]) -> None:
        """Write tensors into a new folder."""
        partial = self.path(f"{name}.partial")
        partial.mkdir(parents=True)
        self.fill(partial, tensors)
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        partial.rename(self.path(name))
        _sync(self.folder)

    def tensors(self, weights: Iterable[NamedTensor]) -> Iterable[NamedTensor]:
        """Return what of a policy's weights is written."""
        raise NotImplementedError

    def fill(self, folder: Path, tensors: Iterable[NamedTensor]) -> None:
        """Write tensors into an empty folder."""
        raise NotImplementedError

    def remove_others(self, name: str) -> None:
        """Remove all folders but this one: former weights, and what an interrupted run left."""
        for path in self.folder.iterdir():
            if path.name != name and path.is_dir():
                shutil.rmtree(path)


class WeightFiles(WholeFolder):
    """Folders with safetensors and config.json, which `from_pretrained` and servers load.

    Args:
        folder: holds them; nothing else should be in it.
        config: of the model.
        largest_file: bytes of tensors in one file.
    """

    def __init__(self, folder: str | Path, config: PreTrainedConfig, largest_file: int = LARGEST_FILE) -> None:
        super().__init__(folder)
        self.config, self.largest_file = config, largest_file

    def tensors(self, weights: Iterable[NamedTensor]) -> Iterable[NamedTensor]:
        """Return all of them: a server that is given a part of a layer fills the rest with anything."""
        return weights

    def fill(self, folder: Path, tensors: Iterable[NamedTensor]) -> None:
        """Write a model into an empty folder."""
        self.config.save_pretrained(folder)
        files: dict[str, str] = {}
        total = 0
        for number, part in enumerate(self._parts(tensors), 1):
            file = f"model-{number:05d}.safetensors"
            save_file(part, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(part, file)
            total += sum(tensor.nbytes for tensor in part.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    def _parts(self, tensors: Iterable[NamedTensor]) -> Iterator[dict[str, Tensor]]:
        part: dict[str, Tensor] = {}
        size = 0
        for name, tensor in tensors:
            if part and size + tensor.nbytes > self.largest_file:
                yield part
                part, size = {}, 0
            part[name] = copied(tensor)
            size += tensor.nbytes
        if part:
            yield part


def copied(tensor: Tensor) -> Tensor:
    """Return a copy in the memory of the host; a gathered tensor is gone with the next one."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Everyone:
    """The processes of a run, as far as they hand over weights together.

    Attributes:
        run_id: the same in every process of the run, and different in every run.
        is_main: whether this process writes or sends.
        wait: returns when all processes have called it.
    """

    run_id: str
    is_main: bool
    wait: Callable[[], object]

    def __post_init__(self) -> None:
        if not RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"run_id names folders: expected letters, digits, '_', '-' and '.', got {self.run_id!r}")


class FileTransfer:
    """Gives servers the weights of a policy through a folder that they see.

    Every process has one. The main process writes the files and lets the servers load them; a server that is away
    gets them later, from whichever process notices first.

    Args:
        pool: of the servers.
        files: where weights are written, the same folder for all processes and servers.
        everyone: the processes of the run.
    """

    def __init__(self, pool: ServerPool, files: WholeFolder, everyone: Everyone) -> None:
        self.pool, self.files, self.everyone = pool, files, everyone
        self.num_updates = 0

    def update(self, weights: Iterable[NamedTensor]) -> None:
        """Let the servers have these weights; every process takes part, and returns when they can be used."""
        self.num_updates += 1
        name = f"{self.files.prefix}{self.everyone.run_id}-{self.num_updates:06d}"
        tensors = self.files.tensors(weights)
        self.everyone.wait()  # no process generates any more
        if self.everyone.is_main:
            self.files.write(name, tensors)
        else:
            for _ in tensors:  # gathers
                pass
        self.everyone.wait()  # the folder is there
        self.pool.set_weights(Weights(name, self.files.path(name)))
        if self.everyone.is_main:
            self.pool.load_weights()
        self.everyone.wait()
        if self.everyone.is_main:
            self.files.remove_others(name)
