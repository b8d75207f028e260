"""Loads weights from a checkpoint under the names of the live model, and checks that they fit.

`save_pretrained` writes many vision-language models under their hub's key names; loading those names into the live
model as they stand changes nothing and only warns. `from_pretrained` converts them. Adapters and DeepSpeed's files
keep the live names, but what does not fit only causes a warning, or not even that.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import PreTrainedModel

FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER = "adapter_model.safetensors"
DEEPSPEED_CLASSES = frozenset(  # what its shards name beside tensors and plain values
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
Shapes = dict[str, tuple[int, ...]]


def load_full_weights(model: PreTrainedModel, checkpoint: str | Path) -> None:
    """Copy all weights of a checkpoint into the model.

    Raises:
        ValueError: the checkpoint lacks weights of its own model.
        RuntimeError: keys of the checkpoint and of the model do not fit.
    """
    loaded: Any = type(model).from_pretrained(checkpoint, dtype=model.dtype, device_map=None, output_loading_info=True)
    saved, info = loaded
    wrong = {kind: sorted(str(key) for key in info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        raise ValueError(_misfit_message(checkpoint, wrong))
    model.load_state_dict(saved.state_dict(), strict=True)


def has_full_weights(checkpoint: str | Path) -> bool:
    """Return whether the folder holds a whole model (not only an adapter)."""
    return any((Path(checkpoint) / name).is_file() for name in FULL_WEIGHTS)


def check_fit(model: nn.Module, checkpoint: str | Path, *, is_deepspeed: bool) -> None:
    """Compare a checkpoint's keys and shapes with the model before anything is loaded.

    Whole models outside DeepSpeed are left to `load_full_weights`, which is as strict.

    Raises:
        ValueError: it was written by another kind of run (adapter or whole model, with or without DeepSpeed), keys or
            shapes do not fit, or a shard of DeepSpeed could run code.
    """
    folder = Path(checkpoint)
    by_deepspeed, is_adapter = (folder / "latest").is_file(), hasattr(model, "peft_config")
    if by_deepspeed != is_deepspeed:
        raise ValueError(_other_run_message(folder, "with DeepSpeed" if by_deepspeed else "without DeepSpeed"))
    has_adapter, is_whole = (folder / ADAPTER).is_file(), has_full_weights(folder)  # FSDP's shards are neither
    if is_adapter and is_whole and not has_adapter:
        raise ValueError(_other_run_message(folder, "with all weights"))
    if not is_adapter and has_adapter and not is_whole:
        raise ValueError(_other_run_message(folder, "with an adapter alone"))
    if is_deepspeed:
        check_deepspeed_pickles(folder)
        _compare(folder, deepspeed_shapes(folder), trained_shapes(model))
    elif is_adapter and has_adapter:
        _compare(folder, file_shapes(folder / ADAPTER), adapter_shapes(model))


def check_optimizer(optimizer: torch.optim.Optimizer, checkpoint: str | Path) -> None:
    """Compare the optimizer of a checkpoint with that of the run; DeepSpeed's and FSDP's are not looked at.

    Raises:
        ValueError: it has other settings, as another kind of optimizer has, or is of other trained parameters.
    """
    path = Path(checkpoint) / "optimizer.pt"
    if not path.is_file():
        return
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["param_groups"]
    live = optimizer.param_groups
    counts = [[len(group["params"]) for group in groups] for groups in (saved, live)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{path} is of a run that trains other parameters ({counts[0]} in its groups, {counts[1]} in this run's); "
            "resume with the algorithm and the frozen parts of that run"
        )
    unknown = [sorted((one.keys() ^ other.keys()) - {"initial_lr"}) for one, other in zip(saved, live, strict=True)]
    if any(unknown):
        raise ValueError(
            f"{path} is of another kind of optimizer, with other settings ({', '.join(unknown[0][:3])}, ...); resume "
            "with the --optim of that run"
        )


def _other_run_message(folder: Path, how: str) -> str:
    return f"{folder}: this checkpoint was written {how}, this run is not such a run; resume with the flags of that run"


def _compare(folder: Path, saved: Shapes, live: Shapes) -> None:
    wrong = {
        "missing": sorted(live.keys() - saved.keys()),
        "unexpected": sorted(saved.keys() - live.keys()),
        "mismatched": [
            f"{name} {saved[name]} for {live[name]}"
            for name in sorted(live.keys() & saved.keys())
            if saved[name] != live[name]
        ],
    }
    if any(wrong.values()):
        raise ValueError(_misfit_message(folder, wrong))


def _misfit_message(folder: str | Path, wrong: dict[str, list[str]]) -> str:
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for kind, names in wrong.items()
        if names
    ]
    return f"{folder}: the weights do not fit this model: {'; '.join(parts)}; resume with the flags of the run it is of"


def trained_shapes(model: nn.Module) -> Shapes:
    """Return names and shapes of the trained parameters."""
    return {name: _shape(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_shapes(model: Any) -> Shapes:
    """Return names, as in an adapter's file, and shapes of the active adapter."""
    from peft import get_peft_model_state_dict

    live = dict(model.named_parameters())
    saved = get_peft_model_state_dict(model, state_dict=live, adapter_name=model.active_adapters[0])
    return {name: _shape(parameter) for name, parameter in saved.items()}


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty tensor in its place


def file_shapes(path: Path) -> Shapes:
    """Return names and shapes in a file of weights; nothing but its header is read."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def check_deepspeed_pickles(folder: Path) -> None:
    """Check, without unpickling, what DeepSpeed would unpickle.

    Raises:
        ValueError: a file names anything but DEEPSPEED_CLASSES and what torch takes for weights; it could run code.
    """
    step = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    for path in sorted(step.glob("*.pt")):
        try:
            names = set(get_unsafe_globals_in_checkpoint(path)) - DEEPSPEED_CLASSES
        except (UnpicklingError, EOFError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read as a file of tensors: {error}; use another checkpoint") from error
        if names:
            raise ValueError(
                f"{path} asks for {', '.join(sorted(names))}, which could run code when DeepSpeed reads it; resume "
                "from another checkpoint"
            )


def deepspeed_shapes(folder: Path) -> Shapes:
    """Return names and shapes of the trained parameters, as DeepSpeed recorded them beside its shards."""
    step = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    states = torch.load(sorted(step.glob("*model_states.pt"))[0], map_location="cpu", weights_only=True, mmap=True)
    return {name: tuple(shape) for group in states["param_shapes"] for name, shape in group.items()}
