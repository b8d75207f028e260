"""Browser profiles of killed runs do not stay in the temporary folder; those of live ones do."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vlm_grpo.envs.browser.profiles import PREFIX, Profile

HOLDER = """
import time
from vlm_grpo.envs.browser.profiles import Profile
profile = Profile()
print(profile.folder, flush=True)
time.sleep(60)
"""


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment)
    theirs = Path(process.stdout.readline().strip())
    (theirs / "Default").mkdir()
    (tmp_path / f"{PREFIX}of_another_kind").mkdir()
    first = Profile()
    assert theirs.is_dir(), "its process lives"
    process.kill()
    process.wait()
    process.stdout.close()
    second = Profile()
    assert not theirs.exists() and first.folder.is_dir() and second.folder.is_dir()
    first.close()
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}of_another_kind"]
