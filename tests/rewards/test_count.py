from __future__ import annotations

import pytest

from vlm_grpo.rewards import score


def counted(answer: str, truth: object, name: str = "count") -> float | None:
    return score(name, f"<think>one, two</think><answer>{answer}</answer>", answer=truth)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("3", 1.0),
        ("3 cubes", 1.0),
        ("3.0", 1.0),
        ("three", 1.0),
        ("There are 3 red cubes.", 1.0),
        ("There are three of them", 1.0),
        ("4", 0.0),
        ("13", 0.0),
        ("3.5", 0.0),
        ("-3", 0.0),
        ("3-5", 0.0),
        ("between 3 and 5", 0.0),
        ("3 or 4", 0.0),
        ("3 4", 0.0),
        ("1 2 3", 0.0),
        ("2019-05-03", 0.0),
        ("1/3", 0.0),
        ("3/4", 0.0),
        ("", 0.0),
        ("None", 0.0),
        ("many", 0.0),
        ("someone", 0.0),
        ("x3", 0.0),
        ("there are 3 " + "really " * 200, 0.0),
    ],
)
def test_count(answer: str, expected: float):
    for truth in (3, "3", 3.0):
        assert counted(answer, truth) == expected


def test_units_that_both_name_must_agree():
    assert counted("3 cubes", "3 cubes") == counted("3 Cube", "3 cubes") == counted("3", "3 cubes") == 1.0
    assert counted("12 cm", "12 kg") == counted("There are 3 dogs", "3 cats") == 0.0
    assert counted("1,200", 1200) == 1.0


def test_no_number_as_truth_does_not_apply():
    for truth in (None, "red", [1, 2], "3 or 4"):
        assert counted("3", truth) is None


def test_partial_credit_is_below_a_right_answer_and_only_by_name():
    assert [counted(str(n), 4, "count_partial") for n in (4, 3, 5, 2, 0, 8, 100)] == [
        1.0, 0.375, 0.375, 0.25, 0.0, 0.0, 0.0
    ]  # fmt: skip
    assert counted("3", 4) == 0.0
    assert counted("1", 0, "count_partial") == 0.0
