"""The settings of sampling as vLLM takes them."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_grpo.rollouts.engines.sampling import SamplingSettings


def settings(**options: Any) -> SamplingSettings:
    return SamplingSettings(20, [2, 1], [5], **options)


def test_every_setting_reaches_vllm():
    options: dict[str, Any] = {"top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "temperature": 0.7}
    assert settings(**options).for_vllm(3, None, is_greedy=False) == {
        **options,
        "n": 3,
        "max_tokens": 20,
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "logprobs": 0,
        "logit_bias": {5: -100.0},
    }


def test_a_call_may_have_a_limit_and_be_greedy():
    fields = settings(temperature=0.7, options={"temperature": 0.3}).for_vllm(1, 4, is_greedy=True)
    assert (fields["max_tokens"], fields["temperature"]) == (4, 0.0)


def test_options_win_but_not_over_what_is_suppressed():
    fields = settings(options={"seed": 3, "logit_bias": {"5": 9.0, "7": 1}}).for_vllm(1, None, is_greedy=False)
    assert fields["seed"] == 3
    assert fields["logit_bias"] == {5: -100.0, 7: 1.0}
    with pytest.raises(ValueError, match="logit_bias must map tokens to numbers"):
        settings(options={"logit_bias": 3}).for_vllm(1, None, is_greedy=False)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "raw_logprobs"),
        ({"temperature": 0.7}, "processed_logprobs"),
        ({"top_p": 0.9}, "processed_logprobs"),
        ({"top_k": 5}, "processed_logprobs"),
        ({"min_p": 0.1}, "processed_logprobs"),
        ({"repetition_penalty": 1.1}, "processed_logprobs"),
    ],
)
def test_logprobs_are_raw_where_the_trainers_are(options: dict[str, float], mode: str):
    assert settings(**options).logprobs_mode == mode
