"""mypy is satisfied with src/, and annotations say what a value is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_ANY = 0.05  # of the annotations
MOST_IGNORES = 15
MOST_OTHER_ALIASES = 6
# The shapes that come from outside and hold anything; all are in records.py, with what they stand for.
ALIASES = {"Row", "NewRow", "JsonObject", "JsonSchema", "Message", "Block", "ModelInputs", "Columns", "Prediction"}


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the annotations of parameters, results, variables and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spec = node.args
            for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg):
                if argument is not None and argument.annotation is not None:
                    yield argument.annotation
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def names_any(annotation: ast.expr) -> bool:
    """Return whether `Any` stands in an annotation, also in one that is text."""
    return re.search(r"\bAny\b", ast.unparse(annotation)) is not None


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def test_mypy_finds_nothing():
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_any_is_rare():
    found = [names_any(each) for path in sources() for each in annotations(ast.parse(path.read_text("utf-8")))]
    assert sum(found) <= MOST_ANY * len(found), f"{sum(found)} of {len(found)} annotations have Any"


def test_shapes_that_hold_anything_are_few_and_named_in_one_place():
    places: dict[str, str] = {}
    for path in sources():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and names_any(node.value):
                places |= {target.id: path.name for target in node.targets if isinstance(target, ast.Name)}
    assert {name for name, file in places.items() if file == "records.py"} == ALIASES
    assert len(places) - len(ALIASES) <= MOST_OTHER_ALIASES, places


def test_errors_are_mended_and_not_ignored():
    lines = [line for path in sources() for line in path.read_text("utf-8").splitlines() if "# type: ignore" in line]
    assert len(lines) <= MOST_IGNORES
    assert all("# type: ignore[" in line and line.count("#") > 1 for line in lines), "say which error, and why"
