"""The package can be installed: with the tested versions and every extra at once, and at the lower end of every range.

Nothing is installed: uv resolves the requirements with the metadata of the registry that it is configured for.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "configs" / "constraints.txt"
UNREACHABLE = ("error sending request", "Failed to fetch", "network was disabled", "dns error", "timed out")


def resolve(*options: str) -> dict[str, str]:
    """Return the versions that uv chooses for this package; the test is skipped where no registry can be asked."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "setup.py"]
    env = {**os.environ, "UV_HTTP_TIMEOUT": "60"}
    done = subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"no package registry: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in done.stdout.splitlines()}


def pinned() -> dict[str, str]:
    """Return the version of each package in the constraints."""
    lines = [line.partition("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(each.name): exact_version(each) for each in requirements}


def exact_version(requirement: Requirement) -> str:
    (version,) = (part.version for part in requirement.specifier if part.operator == "==")
    return version


def requirements() -> Iterator[Requirement]:
    """Yield what this package and its extras ask for."""
    for line in importlib.metadata.requires("vlm_grpo") or []:
        yield Requirement(line)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_extra_installs_at_once_with_the_tested_versions(python: str):
    versions = resolve("--extra", "all", "--constraint", str(CONSTRAINTS), "--python-version", python)
    assert {name: versions.get(name) for name in pinned()} == pinned()


def test_the_lower_ends_install_together():
    """Without vLLM, each of whose releases works with one release of PyTorch."""
    extras = importlib.metadata.metadata("vlm_grpo").get_all("Provides-Extra")
    chosen = [option for extra in extras if extra not in ("all", "vllm") for option in ("--extra", extra)]
    versions = resolve(*chosen, "--resolution", "lowest-direct", "--python-version", "3.11")
    for requirement in requirements():
        lower = [part.version for part in requirement.specifier if part.operator == ">="]
        if lower and requirement.name != "vllm":
            version = versions[canonicalize_name(requirement.name)]
            assert re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", lower[0]), requirement


def test_the_lower_end_of_vllm_installs_with_every_extra():
    versions = resolve("--extra", "all", "--resolution", "lowest-direct", "--python-version", "3.11")
    assert versions["vllm"] == "0.29.0"


def test_the_tested_versions_name_every_package_that_is_asked_for():
    assert {canonicalize_name(each.name) for each in requirements()} <= pinned().keys()


def test_the_extra_all_is_every_extra():
    by_extra: dict[bool, set[str]] = {True: set(), False: set()}
    for requirement in requirements():
        if requirement.marker:
            is_of_all = requirement.marker.evaluate({"extra": "all"})
            by_extra[is_of_all].add(f"{requirement.name}{requirement.specifier}")
    assert by_extra[True] == by_extra[False]
