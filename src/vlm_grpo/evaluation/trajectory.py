"""An episode as predictions.jsonl keeps it: its prompt, every turn, every call with its result, images as files.

A turn is a chat message. One of the model has its number (`turn`; those of the prompt have none). One of a tool also
has the call's `arguments`, whether it failed (`is_failure`) and whether the model was shown it (`is_shown`; the results
of the last turn are not). A block of an image names a file of the data (`image`), or a copy in the evaluation's folder
(`file`). No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.envs.environment import blocks_of
from vlm_grpo.envs.protocol import Result

if TYPE_CHECKING:
    from vlm_grpo.rollouts.trajectory import Trajectory

FOLDER = "images"  # of copies, in the folder of the evaluation
LONGEST = 768  # pixels of a copy's longer side
SHARP = 128  # pixels: copies no larger lose nothing
COPY = re.compile(r"\d+-\d+-\d+\.(png|jpg)")


class Copies:
    """Keeps the images of one episode: calling it with an image gives the name of its copy, None for no image.

    The names are those of the row, the sample and the place, so that an episode that is played again replaces them.
    """

    def __init__(self, folder: Path, row: int, sample: int) -> None:
        self.folder, self.name, self.count = folder, f"{row}-{sample}", 0

    def __call__(self, image: Any) -> str | None:
        try:
            picture = open_image(image_ref(image))
        except ValueError:
            return None
        picture.thumbnail((LONGEST, LONGEST))
        suffix, options = (".png", {}) if max(picture.size) <= SHARP else (".jpg", {"quality": 85})
        path = self.folder / FOLDER / f"{self.name}-{self.count}{suffix}"
        self.count += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
        return f"{FOLDER}/{path.name}"


def trajectory(prompt: Sequence[Mapping[str, Any]], episode: Trajectory, copy: Copies) -> list[dict[str, Any]]:
    """The turns of a finished episode, ready for JSON.

    Args:
        prompt: the messages that the model was given, with their images.
        copy: keeps the images that are no files of the data.
    """
    turns = [{**message, "content": _content(message["content"], copy)} for message in prompt]
    said = [message["content"] for message in episode.messages if message["role"] == "assistant"]
    results = iter(episode.results)
    for number, text in enumerate(said, 1):
        turns.append({"role": "assistant", "turn": number, "content": text})
        calls = episode.protocol.calls(text)
        turns += [
            _of_tool(result, call.arguments, copy, is_shown=number < len(said))
            for call, result in zip(calls, results, strict=False)  # fewer results where a call did not end
        ]
    return turns


def _of_tool(result: Result, arguments: Any, copy: Copies, *, is_shown: bool) -> dict[str, Any]:
    return {
        "role": "tool",
        "name": result.name,
        "arguments": arguments,
        "content": [_block(block, copy, is_of_data=False) for block in blocks_of(result.content)],
        "is_failure": result.is_failure,
        "is_shown": is_shown,
    }


def _content(content: Any, copy: Copies) -> Any:
    return content if isinstance(content, str) else [_block(block, copy, is_of_data=True) for block in content]


def _block(block: Mapping[str, Any], copy: Copies, *, is_of_data: bool) -> dict[str, Any]:
    """A block without pixels. Files that a tool showed may be gone tomorrow: they are copied."""
    if block["type"] not in ("image", "video"):
        return dict(block)
    source = getattr(block.get(block["type"]), "source", block.get(block["type"]))
    if isinstance(source, str) and is_of_data:
        return {"type": block["type"], block["type"]: source}
    if block["type"] == "video":
        return {"type": "video", "video": None}
    name = copy(block["image"])
    return {"type": "image", "image": None} if name is None else {"type": "image", "file": name}


def image_blocks(turns: Iterable[Mapping[str, Any]], *, of_tools: bool) -> Iterator[Mapping[str, Any]]:
    """The images that tools showed, or all others, in order."""
    for turn in turns:
        if (turn["role"] == "tool") == of_tools and not isinstance(turn["content"], str):
            yield from (block for block in turn["content"] if block["type"] == "image")


def trajectory_images(prediction: Mapping[str, Any], folder: Path, *, of_tools: bool) -> list[Any]:
    """The images of a prediction in this folder, as data comes in: those of tools, or the prompt's."""
    blocks = image_blocks(prediction.get("trajectory", ()), of_tools=of_tools)
    return [str(folder / block["file"]) if "file" in block else block["image"] for block in blocks]


def remove_unused(folder: Path, predictions: Iterable[Mapping[str, Any]]) -> None:
    """Remove copies of an earlier evaluation that this one has not replaced."""
    samples = (sample for prediction in predictions for sample in prediction.get("samples", [prediction]))
    turns = [turn for sample in samples for turn in sample.get("trajectory", [])]
    both = (*image_blocks(turns, of_tools=True), *image_blocks(turns, of_tools=False))
    used = {block["file"] for block in both if "file" in block}
    for path in (folder / FOLDER).glob("*"):
        if COPY.fullmatch(path.name) and f"{FOLDER}/{path.name}" not in used:
            path.unlink(missing_ok=True)
