from __future__ import annotations

import pytest

from vlm_grpo.rewards import score
from vlm_grpo.rewards.squad import normalized_words


def said(name: str, answer: str, truth: object) -> float | None:
    return score(name, f"<answer>{answer}</answer>", answer=truth)


@pytest.mark.parametrize(
    ("answer", "truth", "f1", "exact"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1.0, 1.0),
        ("Eiffel", "Eiffel Tower", 2 / 3, 0.0),
        ("Tower Eiffel", "Eiffel Tower", 1.0, 0.0),
        ("U.S.", "us", 1.0, 1.0),
        ("don't", "dont", 1.0, 1.0),
        ("new new york", "new york", 0.8, 0.0),  # 2 * 2 / 5
        ("3.5", "35", 0.0, 0.0),
        ("-5", "5", 0.0, 0.0),
        ("1,200", "1200", 1.0, 1.0),
        ("50%", "50", 2 / 3, 0.0),
        ("€12", "$12", 0.5, 0.0),
        ("COVID-19", "covid 19", 1.0, 1.0),
        ("2019-05-01", "2019-05-02", 0.0, 0.0),
        ("no", "no one knows", 0.0, 0.0),
        ("yes and no", "yes", 0.0, 0.0),
        ("東京都", "東京", 0.8, 0.0),
        ("blue", "red", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("the", "red", 0.0, 0.0),
        (" ".join(["red"] * 500), "red", 2 / 501, 0.0),  # a ramble
    ],
)
def test_words(answer: str, truth: str, f1: float, exact: float):
    assert said("word_f1", answer, truth) == pytest.approx(f1)
    assert said("exact_match", answer, truth) == exact


def test_the_best_of_several_true_answers():
    assert said("word_f1", "Paris", ["London", "Paris, France"]) == pytest.approx(2 / 3)
    assert said("exact_match", "Paris", ["London", "paris"]) == 1.0


def test_no_true_answer_does_not_apply():
    for truth in (None, [], "the", "?"):
        assert said("word_f1", "Paris", truth) is None
        assert said("exact_match", "Paris", truth) is None


def test_words_of():
    assert normalized_words("It's -3.5 °C (about) the “U.S.A.”!") == ("its", "-3.5", "c", "about", "usa")
