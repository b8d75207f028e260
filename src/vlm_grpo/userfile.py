"""A user's own object from `path/to/file.py:name`: a reward, an algorithm."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any


def is_file_name(name: str) -> bool:
    """Whether a name is that of an object in a file rather than in a table."""
    return ".py:" in name


def load_from_file(kind: str, name: str) -> Any:
    """What `path/to/file.py:name` names.

    Args:
        kind: of thing, for the error.

    Raises:
        ValueError: no such file, or nothing of that name in it.
    """
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{kind} {name!r}: no such file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"{kind} {name!r}: {path} has no {attribute!r}; its functions are {', '.join(known) or 'none'}"
        )
    return getattr(module, attribute)
