"""What stands where in a packed row, worked out by hand, and what attention makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.shared_prefix.attention import attention
from vlm_grpo.shared_prefix.flex_attention import check_kernel, packed_attention
from vlm_grpo.shared_prefix.packing import Group, Layout, pack


def straight(sample: EncodedPrompt) -> torch.Tensor:
    return torch.arange(len(sample.input_ids))[None]


def test_a_packed_row_repeats_the_last_prompt_token_before_every_completion():
    one, two = EncodedPrompt([1, 2, 3], "one"), EncodedPrompt([7, 8], "two")
    packed = pack([one, one, two, one], [[10, 11], [12], [20, 21, 22], []], straight)
    assert packed.prompts == [one, two]
    #                                 prompt  completion  completion    prompt and completion
    assert packed.input_ids.tolist() == [[1, 2, 3, 10, 3, 7, 8, 20, 21]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    assert packed.labels.tolist() == [[10, 11, 12, 20, 21, 22]]
    assert packed.layout.scored.tolist() == [2, 3, 4, 6, 7, 8]
    assert packed.layout.groups == (Group(0, 2, (2, 1)), Group(5, 1, (3,)))
    assert (packed.rows.tolist(), packed.columns.tolist()) == ([0, 0, 1, 2, 2, 2], [0, 1, 0, 0, 1, 2])


def test_the_tokens_of_a_packed_row_are_those_of_prompts_and_completions_once():
    samples = [EncodedPrompt(list(range(30)), "a")] * 8
    packed = pack(samples, [[5] * length for length in range(1, 9)], straight)
    assert packed.input_ids.size(1) == 30 - 1 + sum(range(1, 9))


def test_rows_of_one_prompt_need_not_stand_together():
    one, two = EncodedPrompt([1, 2], "one"), EncodedPrompt([3, 4], "two")
    packed = pack([one, two, one], [[10], [20], [11]], straight)
    assert packed.input_ids.tolist() == [[1, 2, 2, 3, 4]]
    assert packed.rows.tolist() == [0, 2, 1]


def test_mrope_positions_continue_after_the_last_one_in_all_three_dimensions():
    sample = EncodedPrompt([1, 2, 3], "one")
    positions = torch.tensor([[0, 1, 5], [0, 2, 5], [0, 3, 5]])
    packed = pack([sample], [[10, 11, 12]], lambda _: positions)
    assert packed.position_ids.shape == (3, 1, 5)
    assert packed.position_ids[:, 0].tolist() == [[0, 1, 5, 6, 7], [0, 2, 5, 6, 7], [0, 3, 5, 6, 7]]


def test_blank_prompts_stand_at_the_end_and_predict_nothing():
    sample, blank = EncodedPrompt([1, 2], "one"), EncodedPrompt([8, 9], "blank")
    packed = pack([sample], [[10]], straight, [blank])
    assert packed.prompts == [sample, blank]
    assert packed.layout.groups[1] == Group(2, 1, ())
    assert packed.labels.tolist() == [[10]]


@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("lengths", [((3, 3), (3, 3, 3)), ((1, 4, 2), (5,)), ((2,), ())])
def test_attention_equals_the_masked_one(keys: int, lengths: tuple):
    """Against one softmax over the whole row, in which a token sees its prompt's tokens and its own segment's."""
    torch.manual_seed(0)
    groups, seen, start = [], [], 0
    total = sum(4 + sum(group) for group in lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for group in lengths:
        groups.append(Group(start, 4, group))
        allowed[start : start + 4, start : start + 4] = torch.ones(4, 4).tril().bool()
        place = start + 4
        for length in group:
            allowed[place : place + length, start : start + 4] = True
            allowed[place : place + length, place : place + length] = torch.ones(length, length).tril().bool()
            place += length
        start = place
    query = torch.randn(1, 4, total, 8, requires_grad=True)
    key, value = (torch.randn(1, keys, total, 8, requires_grad=True) for _ in range(2))
    layout = Layout(tuple(groups), torch.tensor(seen))
    output, _ = attention(nn.Module(), query, key, value, None, scaling=0.3, packed=layout)
    wide = [tensor.repeat_interleave(4 // keys, dim=1) for tensor in (key, value)]
    weights = (query @ wide[0].transpose(2, 3) * 0.3).masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    expected = (weights @ wide[1]).transpose(1, 2)
    assert torch.allclose(output, expected, atol=1e-6)
    with torch.no_grad():  # FlexAttention has no backward on a CPU
        whole = packed_attention(query, key, value, layout, 0.3)
    assert torch.allclose(whole.transpose(1, 2), expected, atol=1e-6)
    noise = torch.randn_like(output)
    ours = torch.autograd.grad((output * noise).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * noise).sum(), (query, key, value))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs, strict=True))


def test_flex_attention_takes_the_mixed_types_of_autocast():
    """Queries and keys of 32 bits, values of 16: what weights of 32 bits give under autocast."""
    query, key = torch.randn(2, 1, 4, 12, 16)
    value = torch.randn(1, 4, 12, 16).bfloat16()
    layout = Layout((Group(0, 4, (3, 5)),), torch.arange(4, 12))
    with torch.no_grad():
        exact = packed_attention(query, key, value.float(), layout, 0.25)
        with torch.autocast("cpu", torch.bfloat16):
            output = packed_attention(query, key, value, layout, 0.25)
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), exact, atol=0.03)


@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode])
def test_a_kernel_is_tried_with_its_backward_also_where_gradients_are_off(gradients: Callable):
    """The first packed row of a process may be one that is only scored."""
    ran = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        output.register_hook(ran.append)
        return output

    def without_backward(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        return kernel(*tensors, **options).detach()

    with gradients():
        check_kernel(kernel, torch.device("cpu"))
        assert len(ran) == 1
        with pytest.raises(RuntimeError):
            check_kernel(without_backward, torch.device("cpu"))
