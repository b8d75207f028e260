"""`vlm-grpo preview`: show the prompts with their images, and the rewards of the gold answers."""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.answer_space import ANSWER_SPACES
from vlm_grpo.cli.check import add_data_flags, data_source, pairing, reader_options
from vlm_grpo.cli.command_parser import CommandParser
from vlm_grpo.cli.preview_space import box_converter
from vlm_grpo.cli.templates import KWARGS_HELP, PATH_HELP, GoldTurn, gold_turn, load_prompting, parse_kwargs
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import ImageRef, Row
from vlm_grpo.redact import redact_text

if TYPE_CHECKING:
    from vlm_grpo.records import ImageRef, VideoRef
    from vlm_grpo.rollouts.chat_template import ChatTemplate

THUMBNAIL = 320  # longer side in pixels
FULL = 1 - 1e-6
RIGHTNESS = (
    "accuracy",
    "iou",
)  # rewards of which the gold answer must get the maximum; an outline never equals its mask


@dataclass(frozen=True)
class RowView:
    """One row of the preview. `parts` are (role, pieces); a piece is text, or an image with its caption.

    `accuracy` describes the accuracy reward if it is used.
    """

    where: str
    parts: list[tuple[str, list[Picture | str]]]
    templated: str | None
    completion: str
    rewards: dict[str, float | str | None]
    accuracy: str | None = None

    @property
    def warning(self) -> str | None:
        """Return a warning if the gold answer does not get the full reward."""
        full_rewards = [
            name for name in RIGHTNESS if name != "accuracy" or not (self.accuracy or "").startswith("mask_iou")
        ]
        low = [f"{name} {value:g}" for name, value in self.rewards.items() if name in full_rewards and _is_low(value)]
        return f"{self.where}: the gold answer gets {', '.join(low)} instead of 1" if low else None


@dataclass(frozen=True)
class Picture:
    """An image of a prompt: its caption, and optionally its thumbnail as a data URL."""

    caption: str
    url: str | None


def main(argv: list[str] | None = None) -> int:
    """Print the first rows and return the exit status: 0, or 1 if one cannot be read."""
    parser = CommandParser("vlm-grpo preview", description=__doc__)
    add_data_flags(parser)
    add = parser.add_argument
    add("--count", type=int, default=3, metavar="N", help="number of rows (default: 3)")
    add("--reward_funcs", nargs="+", metavar="NAME[:WEIGHT]", help="rewards of the gold answer (default: the task's)")
    add("--format_prompt", metavar="FILE", help="user-defined prompt template, a jinja file")
    add("--model_name_or_path", metavar="MODEL", help="also show the prompt rendered with this model's chat template")
    add("--chat_template_kwargs", metavar="JSON", help=KWARGS_HELP)
    add("--chat_template_path", metavar="FILE", help=PATH_HELP)
    add("--answer_space", choices=ANSWER_SPACES, help="coordinates of the model's boxes (default: its family's)")
    add("--output", metavar="FILE.html", help="also write an HTML page with the images in the prompts")
    arguments = parser.parse_args(argv)
    source = data_source(parser, arguments)
    for name in ("chat_template_kwargs", "chat_template_path"):
        if getattr(arguments, name) is not None and arguments.model_name_or_path is None:
            parser.error(f"--{name} has no effect without --model_name_or_path")
    try:
        views = preview(source, arguments)
    except (ValueError, KeyError, UsageError) as error:
        print(f"vlm-grpo preview: {redact_text(str(error.args[0]))}", file=sys.stderr)
        return 1
    print("\n\n".join(map(view_text, views)))
    if arguments.output:
        Path(arguments.output).write_text(views_html(views), encoding="utf-8")
        print(f"\nwritten: {arguments.output}")
    return 0


def preview(source: str, arguments: argparse.Namespace) -> list[RowView]:
    """Return the first rows of a data set, rendered and scored."""
    from vlm_grpo.data import load_dataset

    options = {**reader_options(arguments), **pairing(arguments), "format_prompt": arguments.format_prompt}
    template = None
    if arguments.model_name_or_path is not None:
        kwargs = parse_kwargs(arguments.chat_template_kwargs)
        prompting = load_prompting(arguments.model_name_or_path, kwargs, arguments.chat_template_path)
        options |= {"think_tags": prompting.think_tags, "markup": prompting.markup}
        template = prompting.template
    dataset = load_dataset(source, check=False, **options)
    convert_box = box_converter(arguments.model_name_or_path, arguments.answer_space)
    count = min(arguments.count, len(dataset))
    return [
        _view_row(convert_box(dataset[number]), arguments.reward_funcs, template, with_images=bool(arguments.output))
        for number in range(count)
    ]


def _view_row(row: Row, specs: list[str] | None, template: ChatTemplate | None, *, with_images: bool) -> RowView:
    from vlm_grpo.rewards.accuracy import describe_method
    from vlm_grpo.tasks import TASKS

    gold = gold_turn(row, template)
    pictures = iter([_picture(ref, with_images) for ref in row["images"]])
    clips = iter([f"[video: {_video_name(ref)}]" for ref in row["videos"]])
    parts = [
        (
            message["role"],
            [
                next(pictures)
                if block["type"] == "image"
                else next(clips)
                if block["type"] == "video"
                else block["text"]
                for block in message["content"]
            ],
        )
        for message in row["prompt"]
    ]
    specs = list(specs or TASKS[row["task"]].rewards)
    rewards = gold_rewards(specs, gold, row)
    templated = None if template is None else template.render(row["prompt"])
    accuracy = describe_method(row["record"]) if any(spec.split(":")[0] == "accuracy" for spec in specs) else None
    return RowView(f"{row['where']} (id {row['id']})", parts, templated, gold.completion, rewards, accuracy)


def gold_rewards(
    specs: Sequence[str], gold: GoldTurn, row: Row, options: Mapping[str, object] | None = None
) -> dict[str, float | str | None]:
    """Return each reward of the gold turn; `options` are those of `resolve_rewards`."""
    return {spec: _gold_reward(spec, gold, row, options or {}) for spec in specs}


def _gold_reward(spec: str, gold: GoldTurn, row: Row, options: Mapping[str, object]) -> float | str | None:
    """Return a reward of the gold turn, or a text if the reward needs something that is not installed."""
    from vlm_grpo.rewards import is_reward_model, resolve_rewards
    from vlm_grpo.rewards.adapter import WHOLE_TURNS, call_batch_reward

    if is_reward_model(spec):
        return "not computed: a reward model"

    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    columns |= {"turn_opening": [gold.opening], WHOLE_TURNS: [_assistant(gold.opening + gold.completion)]}
    try:
        (function,), _ = resolve_rewards([spec], **options)
        completions = [_assistant(gold.completion)]
        return call_batch_reward(function, prompts=[row["prompt"]], completions=completions, **columns)[0]
    except ImportError as error:
        return f"not computed: {error}"


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _video_name(ref: VideoRef) -> str:
    if isinstance(ref.source, str):
        return ref.source
    return f"{len(ref.source)} frames" if isinstance(ref.source, tuple) else "embedded"


def _is_low(value: float | str | None) -> bool:
    return isinstance(value, float) and value < FULL


def _picture(ref: ImageRef, with_thumbnail: bool) -> Picture:
    from vlm_grpo.data.images import media_name, open_image

    image = open_image(ref)
    caption = f"{media_name(ref.source)} {image.width}x{image.height}"
    if not with_thumbnail:
        return Picture(caption, None)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(caption, "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def view_text(view: RowView) -> str:
    """Return one row as plain text."""
    lines = [f"=== {view.where}"]
    for role, pieces in view.parts:
        text = "".join(piece if isinstance(piece, str) else f"[image: {piece.caption}]" for piece in pieces)
        lines.append(f"[{role}] {text}")
    if view.templated is not None:
        lines += ["--- in the chat template", view.templated]
    lines += ["--- gold completion", view.completion, "--- its rewards"]
    lines += [f"{name}: {reward_text(value)}" for name, value in view.rewards.items()]
    lines += [f"accuracy is {view.accuracy}"] if view.accuracy else []
    return "\n".join([*lines, *([f"WARNING: {view.warning}"] if view.warning else [])])


def reward_text(value: float | str | None) -> str:
    """Return a reward as text."""
    return "not applicable" if value is None else value if isinstance(value, str) else f"{value:g}"


def views_html(views: list[RowView]) -> str:
    """Return a self-contained HTML page: every row with its images in their positions."""
    from jinja2 import Environment

    text = files("vlm_grpo.cli").joinpath("preview.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text).render(views=views, reward_text=reward_text)


if __name__ == "__main__":
    sys.exit(main())
