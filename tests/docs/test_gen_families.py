"""docs/families.md and `vlm-grpo families` are what the table of families says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.gen_families import page
from vlm_grpo.cli.main import main
from vlm_grpo.families import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_command_prints_every_family(capsys: pytest.CaptureFixture):
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in FAMILIES)


def test_published_spaces_name_their_source_and_every_family_a_checkpoint():
    for family in FAMILIES.values():
        assert bool(family.source) == (family.coordinate_space is not None)
        assert family.checkpoints
