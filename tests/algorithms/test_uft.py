"""Hints of UFT against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_grpo.algorithms.uft import UFTOptions, segments


def test_the_chance_of_a_hint_falls():
    found = [UFTOptions().probability(step) for step in (0, 75, 150, 225, 300, 301)]
    assert found == pytest.approx([0.95, 0.8182, 0.5, 0.1818, 0.05, 0.0], abs=1e-4)


def test_segments_end_with_sentences_and_leave_the_answer():
    solution = "<think>A b. C d.\nE 3.14 f. G? H! I j. k</think>\n<answer>5</answer>"
    expected = ["<think>A b. ", "C d.\nE 3.14 f. ", "G? ", "H! I j. ", "k</think>\n"]
    assert segments(solution, 5) == expected
    assert segments("One. Two.", 5) == ["One. ", "Two."]
    assert segments("So \\boxed{3}", 5) == ["So "]
    assert segments("<answer>5</answer>", 5) == segments("", 5) == []


@given(st.text(), st.integers(1, 7))
def test_segments_make_up_the_solution(text: str, count: int):
    parts = segments(text, count)
    assert len(parts) <= count and all(parts)
    assert text.startswith("".join(parts))
    if "<answer>" not in text and "\\boxed{" not in text and text.strip():
        assert "".join(parts) == text
