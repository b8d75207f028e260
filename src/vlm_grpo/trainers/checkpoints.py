"""Which checkpoint a run can be resumed from: one that was being written when the run was killed is not one."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

from vlm_grpo.trainers.resume import FULL_WEIGHTS

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_WEIGHTS = (*(name for name in FULL_WEIGHTS if name not in INDEXES), "adapter_model.safetensors")


def last_complete(folder: str | Path) -> Path | None:
    """The newest checkpoint of an output folder that is whole; broken newer ones are named in a warning."""
    found = [
        (int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := NAME.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        problem = fault(path)
        if problem is None:
            return path
        logger.warning("%s is not complete and is skipped: %s", path, problem)
    return None


def fault(checkpoint: str | Path) -> str | None:
    """What is missing or broken in a checkpoint; None when a run can be resumed from it."""
    folder = Path(checkpoint)
    state = folder / "trainer_state.json"  # written last
    if not state.is_file():
        return "no trainer_state.json"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return "trainer_state.json is cut off"
    names = [*(path.name for path in folder.glob("*.pt")), *(path.name for path in folder.glob("*.pth"))]
    broken = [name for name in names if not zipfile.is_zipfile(folder / name)]
    if broken:
        return f"{sorted(broken)[0]} is cut off"
    if not (folder / "latest").is_file() and not any(folder.glob("optimizer*")):
        return "no optimizer state, which --save_only_model leaves out"
    return _weights_fault(folder)


def _weights_fault(folder: Path) -> str | None:
    if (folder / "latest").is_file():  # DeepSpeed's own layout
        step = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        files = list(step.glob("*.pt"))
        broken = [path.name for path in files if not zipfile.is_zipfile(path)]
        return f"{broken[0]} is cut off" if broken else None if files else f"{step.name} holds no files"
    if any(folder.glob("pytorch_model_fsdp*")):
        shards = [path for path in folder.glob("*_0") if path.is_dir()]
        unfinished = [path.name for path in shards if not (path / ".metadata").is_file()]  # written after the shards
        return f"{unfinished[0]} is not complete" if unfinished else None
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [name for name in SINGLE_WEIGHTS if (folder / name).is_file()]
    if not names:
        return "no weights"
    missing = [name for name in names if not (folder / name).is_file()]
    cut = [name for name in names if name not in missing and not _is_whole(folder / name)]
    return f"{missing[0]} is missing" if missing else f"{cut[0]} is cut off" if cut else None


def _is_whole(path: Path) -> bool:
    """Whether a file of weights is as long as its header says; nothing but the header is read."""
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)
