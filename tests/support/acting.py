"""The training command with scripted turns: for runs with tools that are compared with each other.

python -m tests.support.acting [flags of grpo_jsonl.py]
The model really generates each turn; then the episode says what its prompt and its place in the group decide, so that
one process with 8 rows and two processes with 4 rows each train on the same episodes. Those of every second prompt take
more turns: a process whose episodes are over waits for the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.support.environments import call
from vlm_grpo.cli import train
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.multi_turn import EpisodeLimits, GenerateTurns, MultiTurnRollout
from vlm_grpo.rollouts.trajectory import Trajectory

PICTURES = [call("look", color=color, side=56 + 28 * n) for n, color in enumerate(("red", "green", "blue"))]


def script(question: str, row: int) -> list[str]:
    """Turns of an episode: up to three pictures where the question says please an even number of times, else none."""
    looks = [] if question.count("please") % 2 else PICTURES[: row % 4]
    return [*looks, f"I saw {len(looks)}" + "." * row]


def run(
    self: MultiTurnRollout,
    trajectories: Sequence[Trajectory],
    prompts: Sequence[EncodedPrompt],
    facts: Mapping[str, Any],
    limits: EpisodeLimits,
    generate: GenerateTurns,
    any_rank: Callable[[bool], bool],
) -> None:
    """As the package runs trajectories, with scripted words in place of the generated ones."""

    def next_turns(active: list[Trajectory], room: int) -> Generation:
        assert len(generate(active, room).ids) == len(active)
        turns = []
        for trajectory in active:
            row = next(n for n, each in enumerate(trajectories) if each is trajectory) % 4
            text = script(str(trajectory.prompt.messages), row)[trajectory.num_turns]
            turns.append([*self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_token_id])
        return Generation(turns)

    run_generated(self, trajectories, prompts, facts, limits, next_turns, any_rank)


run_generated = MultiTurnRollout.run

if __name__ == "__main__":
    MultiTurnRollout.run = run
    sys.exit(train.main())
