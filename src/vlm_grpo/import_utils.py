"""Import a user's object from `path/to/file.py:name`: a reward, an algorithm."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import Any

FRAMEWORKS = ("rllava", "verl", "open_r1")  # those that users come from


def is_file_spec(name: str) -> bool:
    """Return whether a name is `file.py:NAME` rather than that of a registry."""
    return ".py:" in name


def load_from_file(kind: str, name: str) -> Any:
    """Return the object that `path/to/file.py:name` names.

    Args:
        kind: of thing, for the error.

    Raises:
        ValueError: no such file, it cannot be imported, or nothing of that name in it.
    """
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{kind} {name!r}: no such file {path!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{kind} {name!r}: {path!r} is no Python file")
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
    """Return what to do about an import of the framework that a file was written for."""
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in FRAMEWORKS:
        return ""
    return (
        f"; {kind}s here need nothing of {package}: leave the import out (docs/migration.md shows what one looks like)"
    )


def _place(path: str, error: BaseException) -> str:
    """Return the file and the line of it at which an import failed."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    return f"{path}:{lines[-1]}" if lines else path
