"""The GPU run: its stages at tiny size on a CPU, what a run that is cut off keeps, and the page made of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
LARGEST = 60 * 2**20  # bytes of all wheels


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_stages

    return gpu_stages


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage_and_its_page_goes_into_the_documentation(tmp_path: Path):
    known = {**os.environ, "PYTHON": sys.executable}
    words = ["bash", str(BENCHMARKS / "gpu.sh"), "--rehearse", "--output", str(tmp_path / "out")]
    done = subprocess.run(words, env=known, cwd=tmp_path, capture_output=True, text=True, check=False)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    outcomes = {s["name"]: s["result"] for s in json.loads((tmp_path / "out" / "stages.json").read_text())["stages"]}
    assert outcomes.pop("decoding") == "left out: needs a GPU"
    assert len(outcomes) == 6 and set(outcomes.values()) == {"passed"}
    page = shutil.copy(ROOT / "docs" / "performance.md", tmp_path)
    words = [sys.executable, str(BENCHMARKS / "step_report.py"), "--gpu", str(tmp_path / "out"), "--page", str(page)]
    subprocess.run(words, check=True)
    text = Path(page).read_text()
    measured = text.split("<!-- measured on a GPU: begin -->")[1].split("<!-- measured on a GPU: end -->")[0]
    assert "Measured on: CPU" in measured and "Not measured" not in measured
    assert re.search(r"\| \d+ passed, 0 failed, \d+ skipped, 0 error \|", measured)
    assert measured.count("| step |") == 5  # the stage, three settings, and the head of the table of decoding
    assert re.search(r"\| captured \| needs a GPU \|", measured)
    assert re.search(r"2 steps, sampled accuracy [\d.]+% to [\d.]+%, held-out accuracy [\d.]+% before", measured)
    assert (tmp_path / "performance_gpu.png").stat().st_size > 1000


def test_stages_are_chosen_and_results_of_earlier_ones_kept(stages: ModuleType, tmp_path: Path, monkeypatch: Any):
    def rehearse(*chosen: str) -> None:
        words = ["gpu_stages", "--rehearse", "--output", str(tmp_path), "--stages", *chosen]
        monkeypatch.setattr(sys, "argv", words)
        assert stages.main() == 0

    quick = {name: stages.Stage(name, "-c pass", 9) for name in ("one", "two", "three")}
    monkeypatch.setattr(stages, "STAGES", tuple(quick.values()))
    for chosen in (["two"], ["three", "one"], ["two"]):
        rehearse(*chosen)
    names = [stage["name"] for stage in json.loads((tmp_path / "stages.json").read_text())["stages"]]
    assert names == ["one", "three", "two"]


def test_a_stage_is_stopped_at_its_limit_and_keeps_what_it_wrote(stages: ModuleType, tmp_path: Path):
    code = f"{tmp_path}/endless.py"
    Path(code).write_text("import time; print('half', flush=True); time.sleep(60)")
    outcome = stages.run(stages.Stage("endless", code, 5), tmp_path, is_rehearsal=False, left=100)
    assert outcome.result == "stopped after 5 s" and outcome.seconds < 30
    assert "half" in (tmp_path / "log.txt").read_text()
    assert stages.run(stages.Stage("endless", code, 5), tmp_path, False, left=3).result == "left out: no time left"
    stages.write(tmp_path, [outcome])
    page = (tmp_path / "report.md").read_text()
    assert "| endless | stopped after 5 s |" in page and "Not measured" in page


def test_a_stage_that_fails_says_with_which_status(stages: ModuleType, tmp_path: Path):
    code = tmp_path / "failing.py"
    code.write_text("raise SystemExit(3)")
    outcome = stages.run(stages.Stage("failing", str(code), 20), tmp_path, is_rehearsal=False, left=100)
    assert outcome.result == "failed (3)"


def test_outcomes_of_tests_are_counted_also_of_a_run_that_was_cut_off(stages: ModuleType):
    said = """
[gw0] [ 10%] PASSED tests/trainers/test_gpu.py::test_one[bf16]
[gw1] [ 20%] FAILED tests/trainers/test_gpu.py::test_two
tests/trainers/test_gpu.py::test_three SKIPPED (no CUDA device) [ 30%]
tests/trainers/test_gpu.py::test_four
"""
    assert stages.counts(said) == "1 passed, 1 failed, 1 skipped, 0 error, test_two"


def test_the_first_four_minutes_hold_tests_a_step_and_decoding(stages: ModuleType):
    assert [stage.name for stage in stages.STAGES[:3]] == ["tests", "step", "decoding"]
    installing = 20
    assert installing + sum(stage.limit for stage in stages.STAGES[:3]) <= 240
    assert sum(stage.limit for stage in stages.STAGES) <= 530


def test_results_of_half_a_step_are_shown(monkeypatch: pytest.MonkeyPatch):
    """TRL's trainer was measured once, ours not at all: 4 s, of which 3 in sampling."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from tables import PHASES, step_table

    seconds = {**dict.fromkeys(PHASES, 0.0), "generate": 3.0, "rest": 1.0, "step": 4.0}
    half = {"seconds": {"trl": [seconds], "ours": []}, "memory": {"trl": [100.0], "ours": []}}
    half |= {"calls": {"trl": {}, "ours": {}}, "operations": {"trl": {}, "ours": {}}}
    lines = step_table(half).splitlines()
    assert lines[2] == "| generate | 3.000 | not measured | not measured |  |  |"
    assert lines[-2].startswith("| step | 4.000 | not measured |")
    assert lines[-1] == "| peak memory, MiB | 100 | not measured | not measured | | |"


@pytest.mark.slow
def test_the_wheels_are_those_of_the_list_and_small(tmp_path: Path):
    known = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["bash", str(BENCHMARKS / "gpu_wheels.sh"), str(tmp_path)], env=known, check=True)
    wheels = list(tmp_path.glob("*.whl"))
    assert sum(wheel.stat().st_size for wheel in wheels) <= LARGEST
    listed = [
        line.split("==")[0] for line in (BENCHMARKS / "gpu_wheels.txt").read_text().splitlines() if line[0] != "#"
    ]
    plain = sorted(re.sub(r"[-_.]+", "-", name).lower() for name in listed)
    assert sorted(re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower() for wheel in wheels) == plain
