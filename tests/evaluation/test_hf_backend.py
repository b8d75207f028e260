from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlm_grpo.data import load_dataset
from vlm_grpo.data.images import open_image
from vlm_grpo.evaluation.backends.hf import generate_greedy


@pytest.fixture
def mixed(mixed_file: Path) -> Any:
    return load_dataset(str(mixed_file), image_folders=str(mixed_file.parent))


def straight(model: Any, processor: Any, row: dict, limit: int) -> str:
    """One row by itself through the processor and `generate`, as a user would write it."""
    images = [open_image(ref) for ref in row["images"]]
    inputs = processor(
        text=processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False),
        images=images or None,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=limit)[0, inputs["input_ids"].size(1) :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_generate_greedy_equals_one_row_at_a_time(tiny: tuple, mixed: Any, batch_size: int):
    model, processor = tiny
    torch.manual_seed(0)
    for parameter in model.parameters():  # larger weights: the answers depend on prompt and image
        parameter.data += 0.2 * torch.randn_like(parameter)
    found = generate_greedy(model, processor, mixed, batch_size=batch_size, max_completion_length=6)
    expected = [straight(model.eval(), processor, mixed[index], 6) for index in range(6)]
    assert [completion.text for completion in found] == expected
    assert len(set(expected)) > 3


def test_a_tokenizer_without_a_pad_token_evaluates(tiny: tuple, mixed: Any):
    """As in training, where TRL takes the end token in its place."""
    model, processor = tiny
    expected = generate_greedy(model, processor, mixed, batch_size=4, max_completion_length=3)
    before = processor.tokenizer.pad_token
    try:
        processor.tokenizer.pad_token = None
        assert processor.tokenizer.pad_token_id is None
        found = generate_greedy(model, processor, mixed, batch_size=4, max_completion_length=3)
    finally:
        processor.tokenizer.pad_token = before
    assert [completion.text for completion in found] == [completion.text for completion in expected]


class Scripted(torch.nn.Module):
    """Answers every prompt with the same tokens and remembers what it was given."""

    def __init__(self, *tokens: int, ends: Any) -> None:
        super().__init__()
        self.tokens = torch.tensor([tokens])
        self.device = torch.device("cpu")
        self.generation_config = SimpleNamespace(eos_token_id=ends)
        self.config = SimpleNamespace(model_type="none")

    def generate(self, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        self.given = given
        self.was_training, self.had_gradients = self.training, torch.is_grad_enabled()
        return torch.cat([input_ids, self.tokens.repeat(len(input_ids), 1)], dim=1)


def test_generate_greedy_stops_at_any_end_token(tiny: tuple, rows: Any):
    tokenizer = tiny[1].tokenizer
    seven, pad = tokenizer.convert_tokens_to_ids(["7", "<|endoftext|>"])
    model = Scripted(seven, seven, pad, pad, ends=[tokenizer.eos_token_id, pad])
    (completion,) = generate_greedy(model, tiny[1], rows.select([0]), max_completion_length=4)
    assert completion[:3] == ("77", 3, False)


def test_generate_greedy_reports_truncation(tiny: tuple, rows: Any):
    seven = tiny[1].tokenizer.convert_tokens_to_ids("7")
    model = Scripted(seven, seven, ends=tiny[1].tokenizer.eos_token_id)
    (completion,) = generate_greedy(model, tiny[1], rows.select([0]), max_completion_length=2)
    assert completion[:3] == ("77", 2, True)
    assert model.given["generation_config"].do_sample is False
    assert model.given["generation_config"].repetition_penalty == 1.0


def test_generate_greedy_leaves_mode_and_random_state_alone(tiny: tuple, rows: Any):
    model = Scripted(5, ends=2).train()
    model.part = torch.nn.Dropout().eval()
    state = torch.get_rng_state()
    sizes: list[int] = []
    generate_greedy(model, tiny[1], rows.select(range(3)), batch_size=2, on_batch=sizes.append)
    assert (model.was_training, model.had_gradients) == (False, False)
    assert (model.training, model.part.training, torch.is_grad_enabled()) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), state)
    assert sizes == [2, 1]


@pytest.mark.parametrize("name", ["batch_size", "max_completion_length"])
def test_generate_greedy_refuses_zero(tiny: tuple, rows: Any, name: str):
    with pytest.raises(ValueError, match=f"--{name} must be at least 1, got 0"):
        generate_greedy(*tiny, rows, **{name: 0})
