"""Match F1 by hand, with real weights, and what is said when they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlm_grpo.answer_parser import parse_steps
from vlm_grpo.records import Record
from vlm_grpo.rewards import make_reward, reasoning, score
from vlm_grpo.rewards.reasoning import load_embedder, match_f1, threshold_of

STEPS = ("The traffic light shows red.", "Two people wait at the crossing.", "A bus stands on the left.")


def vqa(steps: list[str]) -> str:
    return json.dumps({"reasoning_steps": steps, "answer": "x"})


def test_match_f1_is_greedy_and_one_to_one():
    """0.9 takes (0, 0); row 1 loses column 0 and is left with 0.5: k = 2 of 2 predicted, 3 reference: 2*2/(2+3)."""
    similarity = np.array([[0.9, 0.6, 0.0], [0.8, 0.5, 0.0]])
    assert match_f1(similarity, 0.45) == pytest.approx(0.8)
    assert match_f1(similarity, 0.5) == pytest.approx(0.4)  # strictly above: 0.5 does not match
    assert match_f1(similarity, 0.95) == 0.0
    assert match_f1(np.zeros((0, 3)), 0.0) == 0.0


def test_real_embeddings_match_paraphrases_and_not_other_facts():
    paraphrased = ["At the crossing, two people are waiting.", "A red traffic light can be seen."]
    assert score("reasoning", vqa(list(STEPS)), task="vqa", reference_steps=STEPS) == 1.0
    assert score("reasoning", vqa(paraphrased), task="vqa", reference_steps=STEPS) == pytest.approx(2 * 2 / 5)
    assert score("reasoning", vqa(["Bananas are rich in potassium."]), task="vqa", reference_steps=STEPS) == 0.0


def test_saying_the_same_twice_costs():
    assert score("reasoning", vqa([STEPS[0]] * 5), task="vqa", reference_steps=STEPS) == pytest.approx(2 * 1 / 8)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_overlap"])
def test_no_steps_is_zero_and_no_reference_does_not_apply(name: str):
    assert score(name, vqa([]), task="vqa", reference_steps=STEPS) == 0.0
    assert score(name, "no JSON", task="vqa", reference_steps=STEPS) == 0.0
    assert score(name, vqa(list(STEPS)), task="vqa") is None


def test_overlap_counts_common_words():
    assert score("reasoning_overlap", vqa(list(STEPS)), task="vqa", reference_steps=STEPS) == 1.0
    near = "The traffic light shows green."  # 4 of 5 words: Dice 0.8
    assert score("reasoning_overlap", vqa([near]), task="vqa", reference_steps=STEPS) == pytest.approx(2 * 1 / 4)
    assert make_reward("reasoning_overlap", threshold=0.8)([vqa([near])], task=["vqa"], reference_steps=[STEPS]) == [
        0.0
    ]


def test_outside_vqa_the_thought_sentences_are_the_steps():
    text = "<think>The light is red. Two people wait!\nA bus.</think><answer>red</answer>"
    assert parse_steps(text) == ["The light is red.", "Two people wait!", "A bus."]


def test_each_sentence_is_embedded_once_for_a_whole_batch(monkeypatch: pytest.MonkeyPatch):
    batches = []

    class Encoder:
        def encode(self, sentences: list[str], **options: object) -> np.ndarray:
            batches.append(list(sentences))
            return np.eye(8, dtype=np.float32)[[len(sentence) % 8 for sentence in sentences]]

    monkeypatch.setattr(reasoning, "_load_model", lambda encoder, device: Encoder())
    load_embedder.cache_clear()
    record = Record(id=1, question="q", answer="x", task="vqa", reference_steps=("a", "bb"))
    reward = make_reward("reasoning")
    assert reward([vqa(["a"]), vqa(["bb", "a"])], record=[record, record]) == [pytest.approx(2 / 3), 1.0]
    assert reward([vqa(["bb"])], record=[record]) == [pytest.approx(2 / 3)]
    assert batches == [["a", "bb"]]
    load_embedder.cache_clear()


def test_options_choose_encoder_device_and_threshold(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(reasoning, "load_embedder", lambda *names: asked.append(names))
    make_reward("reasoning", encoder="/models/mine", device="cuda", threshold=0.3)
    assert asked == [("/models/mine", "cuda")]


def test_threshold_belongs_to_the_encoder():
    assert threshold_of("sentence-transformers/all-mpnet-base-v2") == 0.48
    with pytest.raises(ValueError, match=r"unknown encoder 'mine'.*--reasoning_threshold"):
        make_reward("reasoning", encoder="/models/mine")


def test_a_missing_package_names_the_extra(tmp_path: Path):
    (tmp_path / "sentence_transformers.py").write_text("raise ImportError('not here')")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; from vlm_grpo.rewards import make_reward; make_reward('reasoning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    advice = "pip install 'vlm_grpo[reasoning]'; 'reasoning_overlap', or the encoder 'overlap', compares words"
    assert advice in done.stderr
