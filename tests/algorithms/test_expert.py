"""Weights, schedules and losses of algorithms with an expert's answers, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_grpo.algorithms import ALGORITHMS, advantages
from vlm_grpo.algorithms.expert import (
    CHORD,
    HPT,
    UFT,
    MixedRollout,
    build_config,
    chord_mix,
    chord_phi,
    hpt,
    luffy,
    needs_sft,
    segments,
    shaped,
    shard_rows,
    srft,
    srft_weights,
)
from vlm_grpo.algorithms.losses import LossInputs

CHANCES = torch.tensor([0.9, 0.5, 0.1, 0.01])


def tokens(chances: list[float], **changes: object) -> LossInputs:
    """One row of the policy's probabilities, all sampled with a probability of a half."""
    logps = torch.tensor([chances]).log().requires_grad_()
    given = {"old": torch.full_like(logps, 0.5).log(), "advantages": torch.ones(1, 1), "mask": torch.ones_like(logps)}
    return LossInputs(logps=logps, **{**given, **changes})


EXPERT = {"is_expert": torch.tensor([[True]])}


def test_luffy_takes_the_mean_over_sampled_and_expert():
    assert advantages("luffy", [0, 1, 0, 1], 4).tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_luffy_shapes_the_experts_probability():
    assert shaped(CHANCES.log(), 0.1).tolist() == pytest.approx([0.9, 0.8333, 0.5, 0.0909], abs=1e-4)
    loss = luffy(tokens([0.5, 0.1], advantages=torch.tensor([[2.0]]), marks=EXPERT))
    assert loss.tolist()[0] == pytest.approx([-1.6667, -1.0], abs=1e-4)
    assert luffy(tokens([0.5, 0.1], marks=EXPERT), luffy_gamma=0.3).tolist()[0] == pytest.approx([-0.625, -0.25])


def test_luffy_does_not_clip_what_was_sampled():
    """Ratios 1.8 and 0.2; the weight of an expert's token does not depend on the old policy."""
    assert luffy(tokens([0.9, 0.1])).tolist()[0] == pytest.approx([-1.8, -0.2])
    assert luffy(tokens([0.9], old=torch.tensor([[-200.0]]), marks=EXPERT)).item() == pytest.approx(-0.9)


def test_an_unlikely_expert_token_has_a_gradient_and_no_nan():
    """d(p / (p + .1)) / d log p = .1 p / (p + .1)^2; the branch that is not taken adds nothing, though it overflows."""
    row = tokens([0.01], old=torch.tensor([[-1000.0]]), marks=EXPERT)
    luffy(row).sum().backward()
    assert row.logps.grad.item() == pytest.approx(-0.001 / 0.0121, rel=1e-4)


@pytest.mark.parametrize(("entropy", "imitated", "reinforced"), [(1.0, 0.1839, 0.2718), (0.5, 0.3033, 0.1649)])
def test_srft_weighs_by_entropy(entropy: float, imitated: float, reinforced: float):
    weights = srft_weights(torch.tensor(entropy))
    assert [weight.item() for weight in weights] == pytest.approx([imitated, reinforced], abs=1e-4)


def test_srft_loss_of_each_kind_of_row():
    """H is the mean of .5 and 1.5, a third token is masked. NLL of a half is .6931; f(.5) = .8333."""
    half = torch.full((4, 3), 0.5).log()
    rows = LossInputs(
        logps=half,
        old=half,
        advantages=torch.tensor([[1.0], [1.0], [1.0], [1.0]]),
        mask=torch.tensor([[1, 1, 0]]).expand(4, 3),
        marks={"is_expert": torch.tensor([[True], [False], [False], [False]]), "verdict": VERDICTS},
        entropies=torch.tensor([[0.5, 1.5, 99.0]]).expand(4, 3),
    )
    expected = [0.1839 * 0.6931 - 0.8333, 0.2718 * 0.6931, -0.6931, 0.0]
    assert srft(rows)[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    changed = srft(rows, srft_sft=1.0, srft_rl=0.2)[:, 0].tolist()
    assert changed == pytest.approx([0.3679 * 0.6931 - 0.8333, 0.5437 * 0.6931, -0.6931, 0.0], abs=1e-4)


VERDICTS = torch.tensor([[1.0], [1.0], [-1.0], [0.0]])


def test_hpt_chooses_for_each_prompt():
    correct = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    assert needs_sft(correct).tolist() == [True, False, False]
    assert needs_sft(correct, 0.25).tolist() == [True, True, False]


def test_hpt_imitates_or_clips():
    """Ratios 1.8 and .2 of sampled tokens are clipped at 1.2 for A > 0 only; an expert's row has NLL times weight."""
    assert hpt(tokens([0.9, 0.1])).tolist()[0] == pytest.approx([-1.2, -0.2])
    assert hpt(tokens([0.9, 0.1]), hpt_clip=0.5).tolist()[0] == pytest.approx([-1.5, -0.2])
    marks = {**EXPERT, "weight": torch.tensor([[4.0]])}
    assert hpt(tokens([0.9, 0.1], marks=marks)).tolist()[0] == pytest.approx([0.4214, 9.2103], abs=1e-4)


@pytest.mark.parametrize("objective", [luffy, srft, hpt])
@pytest.mark.parametrize("marks", [{}, EXPERT])
def test_a_fully_masked_row_is_never_nan(objective: object, marks: dict):
    row = tokens([0.5, 0.1], mask=torch.zeros(1, 2), entropies=torch.ones(1, 2), marks=marks)
    loss = (objective(row) * row.mask).sum()
    loss.backward()
    assert loss.item() == 0 and row.logps.grad.abs().sum() == 0


def test_mu_rises_and_falls():
    plan = CHORD()
    found = [plan.mu(step) for step in (0, 100, 200, 300, 400, 600, 9999)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.4297, 0.26, 0.02, 0.02], abs=1e-4)
    assert CHORD(mu_warmup=0, mu_decay=0, mu_peak=0.1, mu_valley=0.1).mu(0) == 0.1


def test_chord_mixes_and_weighs():
    assert chord_mix(torch.tensor(0.4), torch.tensor(2.0), 0.1).item() == pytest.approx(0.56)
    assert chord_phi(CHANCES[:3].log()).tolist() == pytest.approx([0.09, 0.25, 0.09])


def test_parts_of_a_batch_are_equally_large_and_hold_every_row_once():
    parts = [shard_rows(5, slot, 3) for slot in range(3)]
    assert parts == [[(0, 1.0), (3, 1.0)], [(1, 1.0), (4, 1.0)], [(2, 1.0), (0, 0.0)]]
    assert shard_rows(1, 1, 2) == [(0, 0.0)]


def test_the_chance_of_a_hint_falls():
    found = [UFT().probability(step) for step in (0, 75, 150, 225, 300, 301)]
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("luffy", {"expert_rows": 4}, "expert_rows must be 1 to 3, of 4"),
        ("luffy", {"expert_rows": 1.5}, "expert_rows of --algorithm luffy: got 1.5, default 1"),
        ("luffy", {"expert_rows": True}, "expert_rows of --algorithm luffy: got True"),
        ("luffy", {"expert_rows": None}, "expert_rows of --algorithm luffy: got None"),
        ("srft", {"correct_reward": 3}, "correct_reward of --algorithm srft: got 3"),
        ("hpt", {"rescue_at": 1.0}, "rescue_at must be at least 0 and below 1"),
        ("chord", {"mu_valley": 0.9}, "0 <= mu_valley <= mu_peak <= 1 must hold"),
        ("chord", {"mu_warmup": -1}, "must not be negative"),
        ("chord", {"expert_batch": 0}, "expert_batch must be at least 1"),
        ("chord", {"phi": 1}, "phi of --algorithm chord: got 1, default False"),
        ("uft", {"hint_low": 0.99}, "0 <= hint_low <= hint_high <= 1"),
        ("uft", {"hint_steps": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_config(name, ALGORITHMS[name].expert, options, 4)


def test_options_make_a_plan():
    assert build_config("luffy", MixedRollout(), {"expert_rows": 2, "luffy_gamma": 0.2}, 4) == MixedRollout(2)
    assert build_config("hpt", HPT(), {"correct_above": 1, "correct_reward": "iou"}, 4) == HPT("iou", 1)
    for name in ("luffy", "srft", "hpt", "chord", "uft"):
        options = ALGORITHMS[name].options
        assert json.loads(json.dumps(options)) == options and build_config(name, ALGORITHMS[name].expert, options, 4)
    assert math.isclose(CHORD(expert_batch=3).mu(400), 0.26)
