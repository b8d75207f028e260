"""Supervised warm start of the quickstart's model: it learns the answer format, and an error from wrong labels.

This is not a trainer for users but a plain loop over data in memory, which provides a model with an error for
reinforcement learning to correct.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_grpo.records import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm_grpo.rollouts.encoder import EncodedPrompt


WRONG_SHARE = 0.7
LEARNING_RATE = 1e-3
RISE = 20  # warmup steps of the learning rate


def wrong_label(digit: str, source: random.Random) -> str:
    """Return a noisy label: 7 of 10 odd digits are labelled one too high (9 as 0)."""
    if int(digit) % 2 and source.random() < WRONG_SHARE:
        return str((int(digit) + 1) % 10)
    return digit


def completion(answer: str) -> str:
    """Return the target completion of an answer."""
    return f"<think>I look at the strokes.</think><answer>{answer}</answer>"


@dataclass(frozen=True)
class Encoded:
    """Tokens of one row's prompt and target completion."""

    sample: EncodedPrompt
    target: list[int]


def warm_up(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Row],
    *,
    steps: int,
    batch_size: int = 32,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    on_step: Callable[[float], None] | None = None,
) -> list[float]:
    """Train the model in place and return the loss of every step; `on_step` is called after each.

    The label of a row, correct or wrong, is fixed for the whole training.
    """
    source = random.Random(seed)
    taught = [completion(wrong_label(str(rows[index]["answer"]), source)) for index in range(len(rows))]
    encoded = encode_rows(processor, [rows[index] for index in range(len(rows))], taught)
    return fit(
        model,
        processor,
        encoded,
        source,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        on_step=on_step,
    )


def fit(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    encoded: Sequence[Encoded],
    source: random.Random,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = LEARNING_RATE,
    on_step: Callable[[float], None] | None = None,
) -> list[float]:
    """Train the model in place on rows sampled with `source`, and return the loss of every step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / RISE))
    losses = []
    model.train()
    for _ in range(steps):
        batch = _batch(source.choices(encoded, k=batch_size), processor.tokenizer.pad_token_id)
        loss = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rise.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if on_step is not None:
            on_step(losses[-1])
    return losses


def encode_rows(processor: ProcessorMixin, rows: Sequence[Row], taught: Sequence[str]) -> list[Encoded]:
    """Encode rows with their target completions."""
    from vlm_grpo.answer_parser import remaining_turn
    from vlm_grpo.rollouts.encoder import PromptEncoder

    samples, end = PromptEncoder(processor, {}).encode(rows), processor.tokenizer.eos_token
    return [
        Encoded(sample, processor.tokenizer(remaining_turn(text, sample.opening) + end)["input_ids"])
        for sample, text in zip(samples, taught, strict=True)
    ]


def _batch(rows: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Return model inputs: prompts padded on the left, completions on the right; labels cover completions only."""
    import torch

    from vlm_grpo.rollouts.encoder import collate_per_token
    from vlm_grpo.rollouts.engines.shared_prefill import prompt_batch

    prompts = prompt_batch([row.sample for row in rows], pad_token_id)
    length = max(len(row.target) for row in rows)
    target = torch.tensor([row.target + [pad_token_id] * (length - len(row.target)) for row in rows])
    real = torch.tensor([[1] * len(row.target) + [0] * (length - len(row.target)) for row in rows])
    ignored = torch.full_like(prompts["input_ids"], -100)
    return {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"], target], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], real], dim=1),
        "labels": torch.cat([ignored, target.masked_fill(real == 0, -100)], dim=1),
        **collate_per_token([row.sample for row in rows], prompts["input_ids"].size(1), length),
    }
