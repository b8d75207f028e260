"""What holds for every tool in data_tools/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.files import turns, write_images, write_jsonl
from tests.data_tools.files import ROOT, run_tool

TOOLS = sorted((ROOT / "data_tools").glob("*.py"))
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
status = None
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
heavy = {"torch", "transformers", "trl", "datasets", "pyarrow", "matplotlib"} & set(sys.modules)
print(f"status {status or 0}, heavy {sorted(heavy)}", file=sys.stderr)
"""


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help_loads_nothing_heavy(tool: Path):
    done = subprocess.run([sys.executable, "-c", HELP, str(tool)], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "status 0, heavy []\n"
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_a_wrong_flag_exits_with_two(tool: Path):
    done = run_tool(tool.stem, "--no_such_flag", "x")
    assert done.returncode == 2 and "usage: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_files_stay_small(tool: Path):
    assert tool.read_text(encoding="utf-8").count("\n") <= 350


def test_every_tool_is_described():
    text = (ROOT / "docs" / "data_tools.md").read_text(encoding="utf-8")
    assert [tool.name for tool in TOOLS if f"data_tools/{tool.name}" not in text] == []


def test_check_is_the_command(tmp_path: Path):
    images = write_images(tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "0.png", "conversations": turns("<image>q", "a")}])
    words = ["--data_file_paths", path, "--image_folders", images]
    good = run_tool("check", *words)
    assert good.returncode == 0
    assert good.stdout.startswith("no problems\nthe reward accuracy of 1 rows is auto: By the type of the gold answer")
    (images / "0.png").unlink()
    bad = run_tool("check", *words)
    assert bad.returncode == 1 and "a.jsonl:1 " in bad.stdout and "no such file" in bad.stdout
    assert run_tool("check").returncode == 2
