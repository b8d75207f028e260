"""The training command with scripted turns: for runs with tools that are compared with each other.

python -m tests.support.acting [flags of grpo_jsonl.py]
The model really generates each turn; then the episode says what its prompt and its place in the group decide, so that
one process with 8 rows and two processes with 4 rows each train on the same episodes. Those of every second prompt take
more turns: a process whose episodes are over waits for the other.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.support.environments import call
from vlm_grpo.cli import train
from vlm_grpo.trainers.base import VLMTrainerMixin

PICTURES = [call("look", color=color, side=56 + 28 * n) for n, color in enumerate(("red", "green", "blue"))]


def script(question: str, row: int) -> list[str]:
    """Turns of an episode: up to three pictures where the question says please an even number of times, else none."""
    looks = [] if question.count("please") % 2 else PICTURES[: row % 4]
    return [*looks, f"I saw {len(looks)}" + "." * row]


def next_turns(self: Any, episodes: list[Any], room: int) -> list[list[int]]:
    """As the trainer generates them, with scripted words in their place."""
    generated = sample(self, episodes, room)
    assert len(generated) == len(episodes)
    tokenizer = self.processing_class.tokenizer
    said = []
    for episode in episodes:
        row = next(n for n, each in enumerate(self.current.trajectories) if each is episode) % 4
        text = script(str(episode.prompt.messages), row)[episode.num_turns]
        said.append([*tokenizer(text, add_special_tokens=False)["input_ids"], self.eos_token_ids[0]])
    return said


sample = VLMTrainerMixin._next_turns

if __name__ == "__main__":
    VLMTrainerMixin._next_turns = next_turns
    sys.exit(train.main())
