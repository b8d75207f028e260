from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from vlm_grpo.evaluation.backends.hf import GumbelNoise, HFBackend
from vlm_grpo.evaluation.sampling_params import SamplingParams, check_pass_k, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    """By hand: 2 of 5 right, 2 drawn: 1 - C(3,2)/C(5,2) = 1 - 3/10."""
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    for right in range(7):
        marks = [True] * right + [False] * (6 - right)
        for k in range(1, 7):
            drawn = [any(chosen) for chosen in combinations(marks, k)]
            assert pass_at_k(6, right, k) == pytest.approx(sum(drawn) / len(drawn))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature must be 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top_p must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top_p must be above 0 and at most 1"),
        ({"top_p": 0.9}, "--top_p 0.9 needs --temperature above 0"),
        ({"num_samples": 2}, "--num_samples 2 needs --temperature above 0"),
        ({"temperature": 1.0, "num_samples": 0}, "--num_samples must be at least 1"),
    ],
)
def test_sampling_refuses_contradictions(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**options)


def test_check_pass_k_refuses_what_cannot_be_computed():
    check_pass_k([1, 8], 8, "accuracy")
    for k, samples, metric, message in (
        (0, 4, "accuracy", "--pass_k must be at least 1"),
        (8, 4, "accuracy", "--pass_k 8 needs --num_samples 8 or more, got 4"),
        (2, 4, "mask_iou", "the task's metric 'mask_iou' is graded"),
    ):
        with pytest.raises(ValueError, match=message):
            check_pass_k([k], samples, metric)


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -float("inf")])
    noise = GumbelNoise([5], "cpu")
    drawn = torch.cat([noise(None, logits[None]).argmax(dim=1) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, logits.softmax(0), atol=0.025)  # 3 standard deviations of 0.5 / sqrt(4000)
    assert shares[3] == 0


@pytest.fixture
def lively(tiny: tuple) -> tuple:
    """A tiny model that draws many different tokens."""
    torch.manual_seed(0)
    for parameter in tiny[0].parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return tiny


def texts(pair: tuple, rows: Any, numbers: Any, batch_size: int, **options: Any) -> dict[int, list[str]]:
    model = HFBackend(*pair, batch_size=batch_size, max_completion_length=6, sampling=SamplingParams(**options))
    return {
        entry.number: [completion.text for completion in entry.completions]
        for batch in model(rows, numbers)
        for entry in batch
    }


def test_drawn_completions_do_not_depend_on_their_batch(lively: tuple, rows: Any):
    options = {"temperature": 1.0, "num_samples": 3}
    whole = texts(lively, rows, range(5), 16, **options)
    assert texts(lively, rows, [3, 1], 2, **options) == {number: whole[number] for number in (3, 1)}
    assert len({text for drawn in whole.values() for text in drawn}) > 10
    assert texts(lively, rows, range(5), 16, **options, seed=1) != whole


def test_temperature_and_top_p_narrow_the_draws(lively: tuple, rows: Any):
    greedy = texts(lively, rows, range(3), 8)
    cold = texts(lively, rows, range(3), 8, temperature=1e-4)
    narrow = texts(lively, rows, range(3), 8, temperature=1.0, top_p=1e-6)
    assert cold == narrow == greedy
    assert texts(lively, rows, range(3), 8, temperature=1.0) != greedy


def test_drawing_leaves_torchs_random_state_alone(tiny: tuple, rows: Any):
    state = torch.get_rng_state()
    texts(tiny, rows, [0], 4, temperature=1.0, num_samples=2)
    assert torch.equal(torch.get_rng_state(), state)
