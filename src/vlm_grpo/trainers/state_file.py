"""Files of plain values and tensors: JSON, or safetensors with JSON inside, so that reading them cannot run code.

A pickle can: whoever can write into a checkpoint could run commands as the user who resumes from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from vlm_grpo.data.images import open_image
from vlm_grpo.io import whole_file, write_whole
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.rollouts.segment import CompletionSegment

# Names in the file: they stay when a class is renamed, so that older checkpoints can be read.
RECORDS = {"ImageRef": ImageRef, "VideoRef": VideoRef, "Later": CompletionSegment}
NAMES_OF_RECORDS = {kind: name for name, kind in RECORDS.items()}
CONTENT = "content"  # the tensor that holds the JSON text; all others have numbers for names
FOLDER = "training_state"  # apart: loading a model may take all safetensors files beside it for weights
READ_ERRORS = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def save_state(path: Path, value: object) -> None:
    """Write a value made of JSON's types, tuples, bytes, tensors, arrays, images and the classes of RECORDS.

    Images are stored as models see them, upright and RGB. What was one object in several places is one object again.
    A path that ends in `.json` takes JSON's types alone.

    Raises:
        TypeError: the value holds an object of another type.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_whole(path, json.dumps(value) + "\n")
        return
    encoder = _Encoder()
    text = json.dumps(encoder.encode(value)).encode("ascii")
    tensors = {str(number): tensor for number, tensor in enumerate(encoder.tensors)}
    content = save({CONTENT: torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors})
    with whole_file(path) as file:
        file.write(content)


def load_state(path: Path) -> Any:
    """Return the value that `save_state` was given, with tensors on the CPU.

    Raises:
        ValueError: the file is broken or of another kind.
    """
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(path)
        content = json.loads(tensors.pop(CONTENT).numpy().tobytes())
        return _Decoder(tensors).decode(content)
    except READ_ERRORS as error:
        raise ValueError(_unreadable_message(path, error)) from error


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named tensors as an ordinary file of weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file(dict(weights), partial, metadata={"format": "pt"})
    partial.replace(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, on the CPU.

    Raises:
        ValueError: the file is broken.
    """
    try:
        return load_file(path)
    except READ_ERRORS as error:
        raise ValueError(_unreadable_message(path, error)) from error


def _unreadable_message(path: Path, error: Exception) -> str:
    return (
        f"{path}: expected a {path.suffix[1:]} file written with the checkpoint, it cannot be read "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); resume from another checkpoint"
    )


class _Encoder:
    """Turns a value into JSON; tensors and everything in bytes are collected beside it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}  # of the tensor, by the id of its object
        self._objects: list[Any] = []  # kept, so that no id is used twice

    def encode(self, value: object) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        return self._encode_object(value)

    def _encode_object(self, value: object) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if type(value) is tuple:
            return {"tuple": [self.encode(item) for item in value]}
        if type(value) in NAMES_OF_RECORDS and dataclasses.is_dataclass(value):
            fields = [self.encode(getattr(value, field.name)) for field in dataclasses.fields(value)]
            return {NAMES_OF_RECORDS[type(value)]: fields}
        for kind, (known, as_tensor) in TENSORS.items():
            if isinstance(value, known):
                return {kind: self._number(value, as_tensor)}
        raise TypeError(f"a checkpoint cannot hold an object of type {type(value).__name__}: {value!r:.80}")

    def _number(self, value: object, as_tensor: Callable[[Any], Tensor]) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self._objects.append(value)
            self.tensors.append(as_tensor(value))
        return self._numbers[id(value)]


class _Decoder:
    """Makes the value again; the same number gives the same object."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._objects: dict[tuple[str, int], Any] = {}

    def decode(self, content: object) -> Any:
        if isinstance(content, list):
            return [self.decode(item) for item in content]
        if not isinstance(content, dict):
            return content
        ((kind, inner),) = content.items()
        if kind == "dict":
            return {self.decode(key): self.decode(item) for key, item in inner}
        if kind == "tuple":
            return tuple(self.decode(item) for item in inner)
        if kind in RECORDS:
            return RECORDS[kind](*(self.decode(item) for item in inner))
        if (kind, inner) not in self._objects:
            self._objects[kind, inner] = OBJECTS[kind](self._tensors[str(inner)])
        return self._objects[kind, inner]


def _copy_of_tensor(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().clone()


def _tensor_of_bytes(value: bytes) -> Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0, dtype=torch.uint8)


def _tensor_of_image(value: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(open_image(ImageRef(value))))


def _tensor_of_array(value: np.ndarray) -> Tensor:
    return torch.from_numpy(value.copy(order="C"))


TENSORS: dict[str, tuple[type, Callable[[Any], Tensor]]] = {
    "tensor": (Tensor, _copy_of_tensor),
    "bytes": (bytes, _tensor_of_bytes),
    "image": (Image.Image, _tensor_of_image),
    "array": (np.ndarray, _tensor_of_array),
}
OBJECTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda tensor: tensor,
    "bytes": lambda tensor: tensor.numpy().tobytes(),
    "image": lambda tensor: Image.fromarray(tensor.numpy()),
    "array": lambda tensor: tensor.numpy(),
}
