"""CHORD inside a training: its batch of demonstrations, its weights and its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.data.files import write_jsonl
from tests.support.demonstrations import (
    build,
    nll_of,
    rows,
    trained,
)
from vlm_grpo.data.demonstrations import demonstrations


@pytest.mark.parametrize("phi", [False, True])
def test_chord_adds_the_mean_over_tokens_of_its_own_batch(phi: bool, tiny_model: Path, tmp_path: Path):
    """mu 1: nothing but the answers of the batch, also where there are images."""
    options = {"mu_warmup": 0, "mu_peak": 1.0, "mu_valley": 1.0, "expert_batch": 3, "phi": phi}
    data = rows().select([0, 2, 3])
    trainer = trained(
        "chord", tiny_model, tmp_path, data=data, algorithm_options=options, per_device_train_batch_size=4
    )
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    found = [loss for row in data for loss in nll_of(model, processor, row, row["expert"][0] + "<|im_end|>")]
    weights = [(chance := torch.tensor(-loss).exp()) * (1 - chance) if phi else 1.0 for loss in found]
    expected = sum(loss * weight for loss, weight in zip(found, weights, strict=True)) / len(found)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=2e-4)
    assert trainer.state.log_history[0]["expert/loss"] == pytest.approx(float(expected), abs=2e-4)


def test_chord_imitates_demonstrations_with_questions_of_their_own(tiny_model: Path, tmp_path: Path):
    """mu 1 and a batch of both rows: the loss is theirs, whatever answers the training rows have."""
    said = ["green", "red circle. The answer"]
    path = write_jsonl(tmp_path / "sft.jsonl", [{"problem": f"What is {text}?", "answer": text} for text in said])
    options = {"mu_warmup": 0, "mu_peak": 1.0, "mu_valley": 1.0, "expert_batch": 2}
    shown = demonstrations([path])
    trainer = trained("chord", tiny_model, tmp_path, shown=shown, algorithm_options=options)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    processor = AutoProcessor.from_pretrained(tiny_model)
    found = [loss for row in shown for loss in nll_of(model, processor, row, row["expert"] + "<|im_end|>")]
    assert trainer.state.log_history[0]["expert/loss"] == pytest.approx(sum(found) / len(found), abs=2e-4)
    with pytest.raises(ValueError, match=r"demonstrations, .*, go with --algorithm chord alone"):
        build("luffy", tiny_model, tmp_path, shown=shown)


def test_chord_takes_every_row_once_in_a_pass(tiny_model: Path, tmp_path: Path):
    trainer = build("chord", tiny_model, tmp_path)
    assert trainer.algorithm.stream.rows == [0, 1, 2, 3, 5, 6, 7]  # the fifth has no answer
    passes = [trainer.algorithm.stream.take(7) for _ in range(2)]
    assert all(sorted(number for number, _ in taken) == trainer.algorithm.stream.rows for taken in passes)
    assert passes[0] != [(number, 0) for number, _ in passes[1]]


def test_mu_follows_the_step(tiny_model: Path, tmp_path: Path):
    options = {"mu_warmup": 2, "mu_decay": 2, "mu_peak": 0.5, "mu_valley": 0.1}
    trainer = trained("chord", tiny_model, tmp_path, max_steps=5, algorithm_options=options)
    assert [entry["expert/mu"] for entry in trainer.state.log_history[:5]] == pytest.approx([0, 0.25, 0.5, 0.3, 0.1])
    assert trainer.algorithm.stream.position == 4 * 2  # a quarter of eight completions, but nothing where mu is 0


def test_other_answers_do_not_go_on_with_a_checkpoint(tiny_model: Path, tmp_path: Path):
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained("chord", tiny_model, tmp_path, **common)
    again = build("chord", tiny_model, tmp_path, data=rows(7), **common)
    with pytest.raises(ValueError, match="drawn with rows 7, now 6: resume with the original values"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
