"""The training command with completions that do not depend on sampling: for runs that are compared with each other.

python -m tests.support.scripted [flags of grpo_jsonl.py]
The model really generates; then row i of a rank gets tokens made of its prompt's length and of i, so that one process
with 8 rows and two processes with 4 rows each train on the same completions.
"""

from __future__ import annotations

import sys
from typing import Any

from vlm_grpo.cli import train
from vlm_grpo.trainers import pipeline

GENERATIONS = 4
TEXT_TOKENS = range(10, 200)  # ordinary tokens of the tiny tokenizer


def scripted(prompt: list[int], row: int) -> list[int]:
    """Between 2 and 5 tokens that differ within a group."""
    turn = row % GENERATIONS
    return [TEXT_TOKENS[(len(prompt) + 31 * turn + 7 * place) % len(TEXT_TOKENS)] for place in range(2 + turn)]


def replace_completions(kind: type) -> None:
    """Let the pipeline of both trainers generate, and then put scripted completions in place of the sampled ones."""

    def generate(self: Any, prompt_ids: list[list[int]], *rest: Any, **options: Any) -> Any:
        output = super(kind, self)._generate_single_turn(prompt_ids, *rest, **options)
        completions = [scripted(prompt, row) for row, prompt in enumerate(prompt_ids)]
        return (completions, *output[1:]) if isinstance(output, tuple) else completions

    kind._generate_single_turn = generate


if __name__ == "__main__":
    replace_completions(pipeline.VisionPipeline)
    sys.exit(train.main())
