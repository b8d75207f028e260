"""Running out of memory in a packed forward or its backward: the same training, in smaller parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.shared_prefix.test_sharing import build, trained
from tests.support.training import differences

OPTIONS = {"max_steps": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}


class OutOfMemoryBackward(torch.autograd.Function):
    """Fails in the backward of more than `limit` positions, with what is above it in the gradient already."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, limit: int) -> Tensor:
        context.limit = limit
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if gradient.size(1) > context.limit:
            raise torch.OutOfMemoryError("no memory for the backward")
        return gradient, None


def limited(layer: nn.Module, limit: int, where: str, is_armed: Callable[[], bool] = lambda: True) -> list[int]:
    """A layer that has memory for `limit` positions only; the list grows by the positions of each forward."""
    seen: list[int] = []

    def look(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        seen.append(output.size(1))
        if not is_armed():
            return output
        if where == "backward":
            return OutOfMemoryBackward.apply(output, limit) if output.requires_grad else output
        if (output.requires_grad or where == "no_grad") and output.size(1) > limit:
            raise torch.OutOfMemoryError("no memory for the forward")
        return output

    layer.register_forward_hook(look)
    return seen


def first_layer(trainer: Any) -> nn.Module:
    return trainer.model.model.language_model.layers[0]


def longest_pack(tiny_model: Path, folder: Path, **options: Any) -> int:
    """Positions of the longest packed row of a training."""
    trainer = build(tiny_model, folder, **options)
    seen = limited(first_layer(trainer), 10**9, "backward")
    trainer.train()
    return max(seen)


@pytest.mark.parametrize("micro_step", [0, 1])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_step_without_memory_is_taken_again_in_parts(
    kind: str, where: str, micro_step: int, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plain = trained(tiny_model, tmp_path, kind, **OPTIONS)
    limit = longest_pack(tiny_model, tmp_path, kind=kind, **OPTIONS) // 2
    trainer = build(tiny_model, tmp_path, kind, **OPTIONS)
    trainer.shared_prefix.is_checked = True
    limited(first_layer(trainer), limit, where, lambda: trainer.retry.loss_step >= micro_step)
    rollouts, counted, log = count_calls(trainer.collector, "collect"), [], trainer.log
    trainer.log = lambda *args: (counted.append(len(trainer._metrics["train"]["entropy"])), log(*args))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.splitter.parts > 1 and "out of memory: each forward of shared prompts is split" in caplog.text
    assert len(rollouts) == 1  # a repetition samples nothing
    assert counted[:2] == [2, 2]  # and counts no metric twice
    worst = differences(plain, trainer)
    assert worst["logs"] < 1e-5 and worst["weights"] < 1e-4


def count_calls(trainer: Any, method: str) -> list[None]:
    calls: list[None] = []
    inner: Callable = getattr(trainer, method)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(None)
        return inner(*args, **options)

    setattr(trainer, method, counted)
    return calls


def test_passes_without_gradient_are_cut_too(tiny_model: Path, tmp_path: Path):
    """The reference pass comes first: it finds the limit, and the loss keeps to it."""
    options = {"max_steps": 1, "beta": 0.1}
    plain = trained(tiny_model, tmp_path, **options)
    limit = longest_pack(tiny_model, tmp_path, **options) - 1
    trainer = build(tiny_model, tmp_path, **options)
    trainer.shared_prefix.is_checked = True
    seen = limited(trainer.ref_model.model.language_model.layers[0], limit, "no_grad")
    trainer.train()
    assert trainer.splitter.parts == 2 and seen[0] > limit >= max(seen[1:])
    assert differences(plain, trainer)["logs"] < 1e-5


def test_rows_that_are_too_long_alone_end_the_run(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=1)
    trainer.shared_prefix.is_checked = True
    limited(first_layer(trainer), 1, "forward")
    with pytest.raises(torch.OutOfMemoryError, match="no memory for the forward"):
        trainer.train()
    assert trainer.splitter.parts == 8


def test_activations_of_one_part_are_there_at_a_time(tiny_model: Path, tmp_path: Path):
    """Of two parts the second's graph is made only when the first's is used up, and each forward runs twice."""
    trainer = build(tiny_model, tmp_path, max_steps=1)
    trainer.shared_prefix.is_checked = True
    trainer.splitter.parts = 2
    events: list[str] = []
    first_layer(trainer).register_forward_hook(
        lambda module, args, output: events.append("forward") if trainer.retry.loss_step >= 0 else None
    )
    first_layer(trainer).register_full_backward_hook(lambda module, inputs, outputs: events.append("backward"))
    trainer.train()
    assert events == ["forward", "forward", "forward", "backward", "forward", "backward"]
