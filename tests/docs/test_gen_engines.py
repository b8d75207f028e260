"""The table in docs/engines.md is what benchmarks/engine_agreement.json says, and what does not agree has a reason."""

from __future__ import annotations

import json

from benchmarks.engine_agreement import FAMILIES, KINDS, RESULT
from docs.gen_engines import LIMIT, PAGE, REASONS, START, page
from tests.support.families import FAMILIES_TINY

REWRITE = "rewrite the table: python docs/gen_engines.py"


def test_the_table_is_that_of_the_measurement():
    assert START in PAGE.read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), REWRITE


def test_what_does_not_agree_has_a_reason_and_nothing_else_has():
    families = json.loads(RESULT.read_text(encoding="utf-8"))["families"]
    apart = {
        name
        for name, measured in families.items()
        if not all(isinstance(measured[kind], float) and measured[kind] < LIMIT for kind in KINDS)
    }
    assert apart == REASONS.keys()


def test_every_family_is_in_the_table():
    assert json.loads(RESULT.read_text(encoding="utf-8"))["families"].keys() <= set(FAMILIES)
    assert FAMILIES_TINY.keys() - set(FAMILIES) == {"qwen3_5_nothink"}  # another chat template
    assert all(f"`{name}`" in PAGE.read_text(encoding="utf-8") for name in FAMILIES)
