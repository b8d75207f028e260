"""Environments for tests of rollouts, and a model's completions by script."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.tool_parser import make_tool_call_str
from vlm_grpo.rollouts.engines.engine import Generation

COLORS = ("red", "green", "blue", "white")


class Gallery:
    """Shows a picture whenever it is asked for one; the answer's last word is scored."""

    def __init__(self, *, limit: int = 9) -> None:
        self.limit = limit
        self.done = False

    def reset(self, **row: Any) -> str:
        """Begin."""
        self.shown, self.text, self.done, self.seen = 0, "", False, None
        return "Look, then answer."

    def see(self, **facts: Any) -> None:
        """Keep what the rollout knows."""
        self.seen = facts

    def look(self, color: str, side: int = 56) -> list[dict[str, Any]]:
        """Show a picture.

        Args:
            color: Its color.
            side: Its width and height in pixels.
        """
        if color not in COLORS:
            raise ToolError(f"no color {color!r}")
        self.shown += 1
        self.done = self.shown >= self.limit
        image = Image.new("RGB", (side, side), color)
        return [{"type": "text", "text": f"{color}: "}, {"type": "image", "image": image}]

    def read(self, page: int) -> str:
        """Read a page.

        Args:
            page: Its number.
        """
        return f"page {page}"

    def wait(self, seconds: float) -> str:
        """Do nothing for a while.

        Args:
            seconds: How long.
        """
        time.sleep(seconds)
        return "done"

    def crash(self) -> str:
        """Fail."""
        raise RuntimeError("broken")

    def finish(self, text: str) -> None:
        """Keep the last turn."""
        self.text = text

    def get_reward(self) -> float:
        """The number of pictures that were shown, and the length of the last turn."""
        return self.shown + len(self.text) / 1000

    def metrics(self) -> dict[str, float]:
        """How many pictures were shown."""
        return {"shown": float(self.shown)}


def call(name: str, **arguments: Any) -> str:
    """A turn that is one call."""
    return make_tool_call_str(name, arguments)


def scripted_turns(
    trainer: Any, scripts: Sequence[Sequence[str]], is_truncated: Callable[[int, int], bool] = lambda row, turn: False
) -> None:
    """Let row b of every rollout say `scripts[b][0]`, then `scripts[b][1]`, ...; the last turn again and again.

    `is_truncated(row, turn)` leaves a turn's end out.
    """
    tokenizer, end = trainer.processing_class.tokenizer, trainer.eos_token_ids[0]

    run = trainer.multi_turn.run

    def scripted(trajectories: list[Any], prompts: list[Any], facts: Any, limits: Any, generate: Any, any_rank: Any):
        def next_turns(active: list[Any], room: int) -> Generation:
            turns = []
            for trajectory in active:
                row = next(n for n, each in enumerate(trajectories) if each is trajectory)
                script = scripts[row % len(scripts)]
                text = script[min(trajectory.num_turns, len(script) - 1)]
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                turns.append(ids if is_truncated(row, trajectory.num_turns) else [*ids, end])
            return Generation(turns)

        return run(trajectories, prompts, facts, limits, next_turns, any_rank)

    trainer.multi_turn.run = scripted
