"""Right answers in every spelling, and the hacks that must not pay."""

from __future__ import annotations

import pytest

from vlm_grpo.rewards import score


def answered(answer: str) -> str:
    return f"<think>I look.</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "truth", "options", "expected"),
    [
        ("(B)", "B", ["cat", "dog"], 1.0),
        ("B)", "B", ["cat", "dog"], 1.0),
        ("B.", "B", ["cat", "dog"], 1.0),
        ("B dog", "B", ["cat", "dog"], 1.0),
        ("Answer: B", "B", ["cat", "dog"], 1.0),
        ("the answer is B", "B", ["cat", "dog"], 1.0),
        ("dog", "B", ["cat", "dog"], 1.0),
        ("cat", "B", ["cat", "dog"], 0.0),
        ("Vitamin C", "C", ["x", "y", "z"], 0.0),
        ("Because A", "B", ["x", "y"], 0.0),
        ("1,200", "1200", [], 1.0),
        ("11", "12", [], 0.0),
        ("12 cm", "12 kg", [], 0.0),
        ("3-5", "3", [], 0.0),
        ("2019-05-01", "2019-05-02", [], 0.0),
        ("12 apples", "13 apples", [], 0.0),
        ("blue", "red", [], 0.0),
        ("know", "no", [], 0.0),
        ("The red one.", "red one", [], 1.0),
        ("1/2", "0.5", [], 1.0),
        ("-3", "3", [], 0.0),
        ("Yes", "yes", [], 1.0),
        ('["b", "a"]', '["a", "b"]', [], 1.0),
        ('["a"]', '["a", "b"]', [], 0.0),
    ],
)
def test_accuracy_by_the_type_of_the_truth(answer: str, truth: str, options: list[str], expected: float):
    assert score("accuracy", answered(answer), answer=truth, options=options) == expected


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "7",
        "<answer></answer>",
        "<think><answer>7</answer></think>",
        "<answer>7</answer><answer>8</answer>",
        "<think>7",
        "<think>x</think>7",
    ],
)
def test_no_answer_or_another_last_answer_is_wrong(completion: str):
    assert score("accuracy", completion, answer="7") == 0.0


def test_the_last_answer_counts():
    assert score("accuracy", "<answer>8</answer><answer>7</answer>", answer="7") == 1.0


def test_accuracy_does_not_apply_without_truth():
    assert score("accuracy", answered("7")) is None


def test_math_is_symbolic():
    assert score("accuracy", answered(r"\frac{2}{4}"), answer="0.5", method="math") == 1.0
    assert score("accuracy", answered("x+1"), answer="1+x", method="math") == 1.0
    assert score("accuracy", answered("2"), answer="3", method="math") == 0.0


def test_unknown_method_names_the_known_ones():
    with pytest.raises(RuntimeError, match="unknown accuracy method 'exakt'; did you mean 'exact'"):
        score("accuracy", answered("7"), answer="7", method="exakt")
