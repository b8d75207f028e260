"""Right answers in every spelling, and the hacks that must not pay."""

from __future__ import annotations

import json

import pytest

from vlm_grpo.rewards import make_reward, score
from vlm_grpo.rewards.accuracy import METHODS, infer_method
from vlm_grpo.rewards.mcq import parse_choice, parse_choices

BOXES = ('[{"bbox_2d": [0, 0, 9, 9], "label": "dog"}]', '[{"bbox_2d": [0, 0, 9, 9], "label": "cat"}]')


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


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("0.1 m", "10 cm", 1.0),
        ("10 cm", "0.1 m", 1.0),
        ("10 cm", "0.2 m", 0.0),
        ("36 km/h", "10 m/s", 1.0),
        ("50 °F", "10 °C", 1.0),
        ("12", "12 kg", 0.0),
        ("12 kg", "12", 0.0),
        ("12 Apples", "12 apples", 1.0),
        ("1 apple", "1 apples", 1.0),
        ("1 Mm", "1 mm", 0.0),  # a thousand kilometres
        ("50%", "0.5", 1.0),
        ("50 percent", "50%", 1.0),
        ("50", "50%", 0.0),
        ("$12", "$12", 1.0),
        ("€12", "$12", 0.0),
        ("$12$", "12", 1.0),  # LaTeX
        ("1.2e3", "1200", 1.0),
        ("1.2 x 10^3", "1200", 1.0),
        ("3/4", "0.75", 1.0),
        ("−3", "-3", 1.0),
        ("3.14159", "3.14", 0.0),
        ("3.1400001", "3.14", 1.0),  # relative error 3e-8
        ("9007199254740993", "9007199254740992", 0.0),  # equal as floats
        ("1999", "2000", 0.0),
        ("3 or 4", "3", 0.0),
        ("3:45", "3", 0.0),
        ("3 cats and 4 dogs", "3 cats", 0.0),
        ("1/0", "1", 0.0),
        ("1e999999999", "1", 0.0),
        ("May 1, 2019", "2019-05-01", 1.0),
        ("2019/05/01", "2019-05-01", 1.0),
        ("2019", "2019-05-01", 0.0),
        ("2019-05-01", "2019", 0.0),
    ],
)
def test_numbers_units_and_dates(answer: str, truth: str, expected: float):
    assert score("accuracy", answered(answer), answer=truth) == expected
    assert score("accuracy", answered(answer), answer=truth, method="numeric") == expected


def test_tolerance_is_relative_and_off_by_default():
    assert score("accuracy", answered("98"), answer="100") == 0.0
    assert score("accuracy", answered("98"), answer="100", tolerance=0.02) == 1.0
    assert make_reward("accuracy", tolerance=0.02)([answered("98"), answered("97")], answer=["100", "100"]) == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("B dog", (), "b"),
        ("A dog", (), None),  # an article
        ("the answer is A", (), "a"),
        ("**B**", (), "b"),
        ("[b]", (), "b"),
        ("B - dog", (), "b"),
        ("B, dog", (), "b"),
        ("The correct option is: C", (), "c"),
        ("B or C", (), None),
        ("B. or C.", (), None),
        ("(A) (B)", (), None),
        ("B cat", ("cat", "dog"), None),
        ("B) cat", ("cat", "dog"), None),  # the letter of one, the text of the other
        ("B) something else", ("cat", "dog"), "b"),
        ("a dog", ("(A) cat", "(B) dog"), "b"),
        ("same", ("same", "same"), None),
        ("", ("", "x"), None),
        ("Because A", (), None),
        ("Vitamin C", (), None),
        *(
            (text, ("猫", "狗"), "b")
            for text in ("B、狗", "B。", "（B）", "B：狗", "Ｂ．狗", "B狗", "狗。", "答案是B", "选Ｂ！")
        ),
        *((text, (), "b") for text in ("B是正确答案。", "B。", "正确答案：B", "故选B", "B項正確")),
        *((text, (), None) for text in ("B或C", "B不对", "B、或者C", "不是B", "B型血", "維他命B")),
    ],
)
def test_choice(answer: str, options: tuple[str, ...], expected: str | None):
    assert parse_choice(answer, options) == expected


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mask_iou"])
def test_every_method_accepts_the_truth_and_refuses_another(method: str):
    truth, other = {
        "mcq": ("B", "A"),
        "yes_no": ("yes", "no"),
        "numeric": ("12 cm", "13 cm"),
        "math": ("x^2", "x^3"),
        "all_match": ('["a", "b", "b"]', '["a", "a", "b"]'),
        "list": ("a, b", "b, a"),
        "json": ('{"a": 1, "b": [1, 2]}', '{"a": 1, "b": [2, 1]}'),
        "iou": ("[1, 2, 5, 6]", "[7, 8, 9, 9]"),
        **dict.fromkeys(("detection", "od_ap", "od_ap50", "map", "odLength", "weighted_sum"), BOXES),
    }.get(method, ("a red ball", "a ball"))
    assert score("accuracy", answered(truth), answer=truth, method=method) == 1.0
    assert score("accuracy", answered(other), answer=truth, method=method) == 0.0


@pytest.mark.parametrize(
    ("method", "truth"), [("yes_no", "blue"), ("yes_no", "yes and no"), ("numeric", "blue"), ("mcq", "blue")]
)
def test_a_method_does_not_apply_to_a_truth_of_another_type(method: str, truth: str):
    assert score("accuracy", answered(truth), answer=truth, method=method) is None


def test_auto_verifies_latex_and_boxed_answers():
    assert score("accuracy", answered(r"$\frac{1}{2}$"), answer=r"$\frac{2}{4}$") == 1.0
    assert score("accuracy", r"<think>\boxed{4}</think> so \boxed{\frac{1}{2}}", answer="0.5", method="math") == 1.0
    for answer, truth in (("$X$", "$x$"), ("$2Ab+1$", "$2ab+1$"), (r"$\frac{T}{2}$", r"$\frac{t}{2}$")):
        assert score("accuracy", answered(answer), answer=truth) == 0.0  # LaTeX is case-sensitive
        assert score("accuracy", answered(truth), answer=truth) == 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(
            (text, "ac")
            for text in ("AC", "A, C", "A and C", "(A)(C)", "A、C", "The answer is C, A.", '["A", "C"]', "ＡＣ")
        ),
        *((text, "b") for text in ("B", "(B) dog", "dog")),
        *((text, None) for text in ("AE", "AA", "ac", "cat and dog", "", '["A", 1]')),
    ],
)
def test_several_letters(value: str, expected: str | None):
    assert parse_choices(value, ("cat", "dog", "cow", "pig")) == (expected and frozenset(expected))


def test_a_truth_of_several_letters_wants_all_of_them():
    given = {"options": ["cat", "dog", "cow"], "method": "mcq"}
    for truth in ("AC", "A, C", ["A", "C"]):
        earned = [score("accuracy", answered(text), answer=truth, **given) for text in ("C, A", "AC", "A", "ABC", "B")]
        assert earned == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert infer_method("AC", ("cat", "dog", "cow")) == "mcq" and infer_method("AD", ("cat", "dog", "cow")) == "text"


@pytest.mark.parametrize("truth", ["30", "B", 30])
def test_mathematics_with_options_takes_the_letter_and_the_text(truth: object):
    """The prompt asks for the letter of an option."""
    given = {"answer": truth, "options": ["10", "30"], "task": "math"}
    for text, expected in (("\\boxed{B}", 1.0), ("\\boxed{30}", 1.0), ("\\boxed{A}", 0.0), ("\\boxed{10}", 0.0)):
        assert score("accuracy", answered(text), **given) == expected
    assert score("accuracy", answered("\\boxed{2^5}"), answer="32", options=["10", "30"], task="math") == 1.0


def test_objects_are_compared_as_json():
    truth = {"a": 1, "b": [1, {"c": "x"}]}
    right = ['{"b":[1,{"c":"x"}],"a":1}', '```json\n{"a": 1.0, "b": [1, {"c": "x"}]}\n```']
    wrong = ['{"a": 1, "b": [{"c": "x"}, 1]}', '{"a": 1}', "a: 1", "{'a': 1, 'b': [1, {'c': 'x'}]}"]
    for answer in (truth, json.dumps(truth)):
        assert [score("accuracy", answered(text), answer=answer) for text in right + wrong] == [1.0] * 2 + [0.0] * 4


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("caf\u00e9", ["cafe\u0301", "Caf\u00e9。", "caf\u00e9！", "ｃａｆé"]),
        ("狗", ["狗。", "狗！", "「狗」"[1], "狗、"]),
        ("نعم", ["نعم؟", "نعم،"]),
        ("हाँ", ["हाँ।"]),
        ("12", ["１２", "１２。", "12．"]),
        ("3.5 kg", ["３．５ kg", "3.5　kg"]),
        ("yes", ["ｙｅｓ", "yes。", "是 yes"[2:]]),
        ("50%", ["５０％", "50%"]),
        ("$x^2$", ["$ｘ^2$", "x^２"]),
        ("ﬁne", ["fine"]),
    ],
)
def test_forms_of_unicode_are_the_same_answer(truth: str, answers: list[str]):
    assert [score("accuracy", answered(text), answer=truth) for text in answers] == [1.0] * len(answers)


def test_exact_is_exact_but_for_composition():
    earned = [
        score("accuracy", answered(t), answer="caf\u00e9", method="exact") for t in ("cafe\u0301", "ｃafé", "café。")
    ]
    assert earned == [1.0, 0.0, 0.0]
