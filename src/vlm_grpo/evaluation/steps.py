"""The turns of an episode as the page of an evaluation takes them: short texts, images by number. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

CALL_LENGTH = 300  # characters of a call's arguments


def steps(
    trajectory: Sequence[Mapping[str, Any]], length: int, of_tools: Iterator[int] | None = None
) -> list[dict[str, Any]]:
    """The turns, each with its role, its blocks, and the model's number or the tool's call.

    A block is a text, or [is it a tool's, number of the image].

    Args:
        length: of a text; what is longer is cut.
        of_tools: numbers of the images that tools showed; None counts from 0, as those of the prompt always do.
    """
    numbers = {True: of_tools or count(), False: count()}
    return [_step(turn, numbers[turn["role"] == "tool"], length) for turn in trajectory]


def _step(turn: Mapping[str, Any], numbers: Iterator[int], length: int) -> dict[str, Any]:
    is_tool = turn["role"] == "tool"
    content = turn["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown = [_block(block, numbers, length, is_tool=is_tool) for block in blocks]
    if not is_tool:
        return {"r": turn["role"], "b": shown, **({"n": turn["turn"]} if "turn" in turn else {})}
    marks = {"f": 1} if turn["is_failure"] else {}
    return {"r": "tool", "c": call_text(turn), "b": shown, **marks, **({} if turn["is_shown"] else {"u": 1})}


def _block(block: Mapping[str, Any], numbers: Iterator[int], length: int, *, is_tool: bool) -> Any:
    if block["type"] == "image":
        return [int(is_tool), next(numbers)]
    text = block["text"] if block["type"] == "text" else f"({block['type']})"
    return text if len(text) <= length else text[:length] + "…"


def call_text(turn: Mapping[str, Any]) -> str:
    """The call that a tool's turn answers: `zoom(box=[1, 2, 3, 4])`."""
    arguments = turn["arguments"]
    if not isinstance(arguments, Mapping):
        return turn["name"] or "a call that cannot be read"
    given = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{turn['name']}({given[:CALL_LENGTH]}{'…' if len(given) > CALL_LENGTH else ''})"


def asked(prediction: Mapping[str, Any]) -> str:
    """The question without markers; of an episode what stands after the last image, as its trajectory has it all."""
    parts = str(prediction["question"]).split("<image>")
    after = parts[-1].strip()
    return after if after and "trajectory" in prediction else "".join(parts).strip()


def said_last(prediction: Mapping[str, Any]) -> str | None:
    """The answer of a prediction; of an episode without one, its last call or else its last turn."""
    trajectory = prediction.get("trajectory")
    if prediction["predicted"] is not None or not trajectory:
        return prediction["predicted"]
    last = trajectory[-1]
    return call_text(last) if last["role"] == "tool" else prediction["completion"] or None
