"""UFT inside a training: hints begin the answers of a prompt, and have a loss of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.demonstrations import (
    build,
    by_text,
    losses_of,
    nll_of,
    rows,
)
from tests.support.training import image_rows
from vlm_grpo.algorithms.uft import segments


def test_a_hint_begins_the_answers_of_a_prompt(tiny_model: Path, tmp_path: Path):
    """Every rollout of a prompt has the same; rewards see whole answers, the loss what follows."""
    seen = []
    trainer = build("uft", tiny_model, tmp_path, algorithm_options={"hint_high": 1.0}, shuffle_dataset=False)
    trainer.reward_funcs = [lambda completions, **c: (seen.extend(completions), by_text(completions))[1]]
    (inputs,) = losses_of(trainer)
    for group in range(2):
        samples = inputs["samples"][4 * group : 4 * group + 4]
        assert len({id(sample) for sample in samples}) == 1 and samples[0].answer_prefix_length
        hint = trainer._tokenizer.decode(samples[0].input_ids[-samples[0].answer_prefix_length :])
        assert trainer._tokenizer.decode(samples[0].input_ids).endswith("<|im_start|>assistant\n" + hint)
    hints = {"".join(segments(answer, 5)) for row in rows()[:2]["expert"] for answer in row}
    assert all(any(message[0]["content"].startswith(hint) for hint in hints) for message in seen)
    assert inputs["num_hint_tokens"] == sum(sample.answer_prefix_length for sample in inputs["samples"])
    assert {len(prompt) for prompt in trainer._logs["prompt"]} == {2}  # the log shows the hint as a turn
    draw, step = trainer.algorithm.random_of, trainer.state.global_step
    here = draw(0, step).integers(1 << 30)
    assert draw(0, step).integers(1 << 30) == here != draw(1, step).integers(1 << 30)
    trainer.state.global_step += 1
    assert trainer.algorithm.random_of(0, trainer.state.global_step).integers(1 << 30) != here


def test_the_loss_of_hints_is_their_mean_over_tokens(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Rewards are equal, KL is 0 at first: what is left is the coefficient times the NLL."""
    options = {"hint_high": 1.0, "hint_low": 1.0, "hint_coef": 0.25}
    data = image_rows(8).add_column("expert", [["red circle."]] * 4 + [None] * 4)
    trainer = build("uft", tiny_model, tmp_path, data=data.select([0, 5]), algorithm_options=options)
    trainer.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    trainer.train()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    found = nll_of(model, processor, data[0], "red circle.")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.25 * sum(found) / len(found), abs=1e-4)
