"""Import a user's object, such as a reward or an algorithm, from `path/to/file.py:name`."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import Any

FRAMEWORKS = ("rllava", "verl", "open_r1")  # frameworks that users migrate from


def is_file_spec(name: str) -> bool:
    """Return whether a name is `file.py:NAME` rather than a name in a registry."""
    return ".py:" in name


def load_from_file(kind: str, name: str) -> Any:
    """Load the object `path/to/file.py:name`.

    Args:
        kind: kind of object, for errors.

    Raises:
        ValueError: the file does not exist, cannot be imported, or has nothing with that name.
    """
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{kind} {name!r}: no such file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{kind} {name!r}: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        hint = _hint(kind, error)
        raise ValueError(f"{kind} {name!r}: {_place(path, error)}: {type(error).__name__}: {error}{hint}") from error
    if not hasattr(module, attribute):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"{kind} {name!r}: {path} has no {attribute!r}; its functions are {', '.join(functions) or 'none'}"
        )
    return getattr(module, attribute)


def _hint(kind: str, error: BaseException) -> str:
    """Return advice about a file that imports the framework it was written for."""
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in FRAMEWORKS:
        return ""
    return f"; {kind}s of this package do not need {package}: remove the import (see docs/migration.md)"


def _place(path: str, error: BaseException) -> str:
    """Return the file and line at which an import failed."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    return f"{path}:{lines[-1]}" if lines else path
