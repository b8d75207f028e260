"""Imports go down only, TRL stays where it belongs, and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "vlm_grpo"
LAYERS = {
    "io": 0, "redact": 0, "file_checks": 0, "web": 0, "time_limits": 0,
    "registry": 0, "records": 0, "answer_parser": 0, "boxes": 0, "masks": 0, "tool_call_formats": 0, "import_utils": 0,
    "rewards": 1, "prompts": 1, "families": 1, "tasks": 1,
    "answer_space": 2, "data": 2, "envs": 2, "image_tokens": 2, "model_utils": 2, "synthetic": 2, "tiny": 2,
    "unsupported_models": 2,
    "algorithms": 3, "rollouts": 3, "shared_prefix": 3,
    "trainers": 4,
    "evaluation": 5,
    "cli": 6, "grpo_jsonl": 6, "quickstart": 6,
}  # fmt: skip
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
            if node.module == "vlm_grpo":
                names += [f"vlm_grpo.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "vlm_grpo" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= LAYERS[unit(path)], f"{path} imports upward: {name}"
        if parts[0] == "trl":
            assert unit(path) in ("rollouts", "trainers", "cli"), f"{path} imports trl"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_functions_stay_short(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def imported_at_once(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield what is imported when a module is imported: not for annotations alone, and not within functions."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imported_at_once(node.orelse)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (name for alias in node.names for name in (node.module, f"{node.module}.{alias.name}"))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported_at_once(ast.iter_child_nodes(node))


def test_no_files_import_each_other():
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in FILES}
    names = {name: path for name, path in names.items() if not name.endswith("__init__")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in names.items()}
    TopologicalSorter({name: {*imported_at_once(tree.body)} & set(names) for name, tree in trees.items()}).prepare()


def test_no_file_name_stands_in_two_folders():
    counts = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_class_name_stands_in_two_files():
    """A reader who searches for a class finds one."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in FILES)
    counts = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1 and not name.startswith("_")] == []


@pytest.mark.parametrize(
    "module", ["vlm_grpo", "vlm_grpo.rewards", "vlm_grpo.tasks", "vlm_grpo.data", "vlm_grpo.cli.args"]
)
def test_light_modules_do_not_import_torch(module: str):
    code = f"import sys, {module}; print([n for n in ('torch', 'trl', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ruff_is_satisfied():
    root = SOURCE.parents[1]
    for command in (["check", "."], ["format", "--check", "."]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
