"""Trajectories in predictions.jsonl and on pages: prompt, turns, calls with results, images as files.

A turn is a chat message. One of the model has its number (`turn`; those of the prompt have none). One of a tool also
has the call's `arguments`, whether it failed (`is_failure`) and whether the model saw it (`is_shown`; the results
of the last turn are not). A block of an image names a file of the data (`image`), or a copy in the evaluation's folder
(`file`). No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.envs.environment import Content, blocks_of
from vlm_grpo.envs.tool_parser import ToolResult
from vlm_grpo.records import Block, JsonObject, Message, Prediction

if TYPE_CHECKING:
    from vlm_grpo.rollouts.trajectory import Trajectory


import json
from itertools import count

FOLDER = "images"  # folder of copies, in the folder of the evaluation
MAX_SIDE = 768  # longer side of a copy in pixels
LOSSLESS_SIDE = 128  # pixels; copies up to this size are lossless
CALL_LENGTH = 300  # maximum characters of a call's arguments on a page
COPY = re.compile(r"\d+-\d+-\d+\.(png|jpg)")


class ImageCopies:
    """Copies the images of one episode: a call with an image returns the name of its copy, None for no image.

    Names consist of row, sample and position, so that a repeated episode overwrites its files.
    """

    def __init__(self, folder: Path, row: int, sample: int) -> None:
        self.folder, self.name, self.count = folder, f"{row}-{sample}", 0

    def __call__(self, image: object) -> str | None:
        try:
            picture = open_image(image_ref(image))
        except ValueError:
            return None
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        suffix = ".png" if max(picture.size) <= LOSSLESS_SIDE else ".jpg"
        path = self.folder / FOLDER / f"{self.name}-{self.count}{suffix}"
        self.count += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=85)  # of JPEG; PNG has none
        return f"{FOLDER}/{path.name}"


def episode_trajectory(prompt: Sequence[Message], trajectory: Trajectory, copy: ImageCopies) -> list[Message]:
    """Return the turns of a finished episode, ready for JSON.

    Args:
        prompt: the messages of the prompt, with their images.
        copy: copies images that are not files of the data.
    """
    turns = [{**message, "content": _content(message["content"], copy)} for message in prompt]
    texts = [message["content"] for message in trajectory.messages if message["role"] == "assistant"]
    results = iter(trajectory.results)
    for number, text in enumerate(texts, 1):
        turns.append({"role": "assistant", "turn": number, "content": text})
        calls = trajectory.tool_parser.calls(text)
        turns += [
            _tool_turn(result, call.arguments, copy, is_shown=number < len(texts))
            for call, result in zip(calls, results, strict=False)  # fewer results if a call has not returned
        ]
    return turns


def _tool_turn(result: ToolResult, arguments: object, copy: ImageCopies, *, is_shown: bool) -> Message:
    return {
        "role": "tool",
        "name": result.name,
        "arguments": arguments,
        "content": [_block(block, copy, is_of_data=False) for block in blocks_of(result.content)],
        "is_failure": result.is_failure,
        "is_shown": is_shown,
    }


def _content(content: Content, copy: ImageCopies) -> Content:
    return content if isinstance(content, str) else [_block(block, copy, is_of_data=True) for block in content]


def _block(block: Block, copy: ImageCopies, *, is_of_data: bool) -> Block:
    """Return a block without pixels. Files returned by a tool may be temporary and are copied."""
    if block["type"] not in ("image", "video"):
        return dict(block)
    source = getattr(block.get(block["type"]), "source", block.get(block["type"]))
    if isinstance(source, str) and is_of_data:
        return {"type": block["type"], block["type"]: source}
    if block["type"] == "video":
        return {"type": "video", "video": None}
    name = copy(block["image"])
    return {"type": "image", "image": None} if name is None else {"type": "image", "file": name}


def image_blocks(turns: Iterable[Message], *, of_tools: bool) -> Iterator[Block]:
    """Yield the image blocks of tools, or all others, in order."""
    for turn in turns:
        if (turn["role"] == "tool") == of_tools and not isinstance(turn["content"], str):
            yield from (block for block in turn["content"] if block["type"] == "image")


def trajectory_images(prediction: Prediction, folder: Path, *, of_tools: bool) -> list[object]:
    """Return the images of a prediction in this folder, either from tools or from the prompt."""
    blocks = image_blocks(prediction.get("trajectory", ()), of_tools=of_tools)
    return [str(folder / block["file"]) if "file" in block else block["image"] for block in blocks]


def remove_unused(folder: Path, predictions: Iterable[Prediction]) -> None:
    """Remove copies of an earlier evaluation that this one has not overwritten."""
    samples = (sample for prediction in predictions for sample in prediction.get("samples", [prediction]))
    turns = [turn for sample in samples for turn in sample.get("trajectory", [])]
    both = (*image_blocks(turns, of_tools=True), *image_blocks(turns, of_tools=False))
    used = {block["file"] for block in both if "file" in block}
    for path in (folder / FOLDER).glob("*"):
        if COPY.fullmatch(path.name) and f"{FOLDER}/{path.name}" not in used:
            path.unlink(missing_ok=True)


def page_turns(trajectory: Sequence[Message], length: int, of_tools: Iterator[int] | None = None) -> list[Message]:
    """Return the turns for a page, each with its role, its blocks, and the model's number or the tool's call.

    A block is a text, or [is_from_tool, number of the image].

    Args:
        length: maximum length of a text.
        of_tools: numbers of the images returned by tools; by default counted from 0, like images of the prompt.
    """
    numbers = {True: of_tools or count(), False: count()}
    return [_page_turn(turn, numbers[turn["role"] == "tool"], length) for turn in trajectory]


def _page_turn(turn: Message, numbers: Iterator[int], length: int) -> JsonObject:
    is_tool = turn["role"] == "tool"
    content = turn["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    blocks_of_turn = [_page_block(block, numbers, length, is_tool=is_tool) for block in blocks]
    if not is_tool:
        return {"r": turn["role"], "b": blocks_of_turn, **({"n": turn["turn"]} if "turn" in turn else {})}
    marks = {"f": 1} if turn["is_failure"] else {}
    return {"r": "tool", "c": call_text(turn), "b": blocks_of_turn, **marks, **({} if turn["is_shown"] else {"u": 1})}


def _page_block(block: Block, numbers: Iterator[int], length: int, *, is_tool: bool) -> object:
    if block["type"] == "image":
        return [int(is_tool), next(numbers)]
    text = block["text"] if block["type"] == "text" else f"({block['type']})"
    return text if len(text) <= length else text[:length] + "…"


def call_text(turn: Message) -> str:
    """Return the call that a tool's turn answers: `zoom(box=[1, 2, 3, 4])`."""
    arguments = turn["arguments"]
    if not isinstance(arguments, Mapping):
        return turn["name"] or "a call that cannot be read"
    arguments_text = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    return f"{turn['name']}({arguments_text[:CALL_LENGTH]}{'…' if len(arguments_text) > CALL_LENGTH else ''})"


def question_text(prediction: Prediction) -> str:
    """Return the question without markers; for an episode, the text after the last image."""
    parts = str(prediction["question"]).split("<image>")
    after = parts[-1].strip()
    return after if after and "trajectory" in prediction else "".join(parts).strip()


def final_text(prediction: Prediction) -> str | None:
    """Return the answer of a prediction; for an episode without one, its last call or turn."""
    trajectory = prediction.get("trajectory")
    if prediction["predicted"] is not None or not trajectory:
        return prediction["predicted"]
    last = trajectory[-1]
    return call_text(last) if last["role"] == "tool" else prediction["completion"] or None
