"""A window before and after an action, drawn with or without defects (`gui`)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from vlm_grpo.synthetic.example import Example
from vlm_grpo.synthetic.fonts import INK, draw_text, draw_times_sign, font

DEFECTS = ("no response", "text cut off", "wrong color", "overlapping text", "missing button")
ACCENT, WRONG = (36, 113, 200), (222, 40, 160)
PAPER, BORDER, QUIET = (248, 248, 250), (150, 152, 160), (222, 224, 230)
TITLES = ("Notes", "Photos", "Mail", "Music", "Tasks", "Maps")
SENTENCES = ("Draft saved for later", "Three new messages", "Nothing left to sync", "Last change: today")
WORDS = ("Milk and bread", "Call the bank", "Buy tickets", "Water plants", "Read page 40")
MESSAGES = {"Open": "Choose a file", "Share": "Link was copied", "Delete": "Moved to trash"}


class Window(NamedTuple):
    """The content of a window; `missing` is a button removed by a defect."""

    missing: str
    title: str
    sentence: str
    typed: str
    is_ticked: bool
    dialog: str


@dataclass(frozen=True)
class Action:
    """An action, and the window that results from it."""

    text: str
    after: Window


def gui_example(random: Random, number: int, side: int) -> Example:
    """Return two screenshots and the list of defects in the second: none, one or two."""
    before = Window(random.choice(list(MESSAGES)), random.choice(TITLES), random.choice(SENTENCES), "", False, "")
    action = _action(random, before)
    defects = _defects(random)
    after = before if "no response" in defects else action.after
    question = (
        f"<image><image>The first screenshot was taken before, the second after this action: {action.text}. "
        f"Which of these defects does the second one show: {', '.join(DEFECTS)}?"
    )
    return Example(question, defects, (draw_window(before, side), draw_window(after, side, defects)))


def _action(random: Random, before: Window) -> Action:
    kind = random.choice(("click", "type", "tick"))
    if kind == "type":
        words = random.choice(WORDS)
        return Action(f'type "{words}" into the text field', before._replace(typed=words))
    if kind == "tick":
        return Action('tick "Remember me"', before._replace(is_ticked=True))
    button = random.choice(list(MESSAGES))
    return Action(f'click the button "{button}", which opens a message', before._replace(dialog=MESSAGES[button]))


def _defects(random: Random) -> list[str]:
    """Sample defects in the order of DEFECTS: a quarter none, a quarter "no response", the others one or two."""
    draw = random.random()
    if draw < 0.25:
        return []
    if draw < 0.5:
        return ["no response"]
    defects = random.sample(DEFECTS[1:], random.choice((1, 1, 2)))
    return [defect for defect in DEFECTS if defect in defects]


def draw_window(window: Window, side: int, defects: list[str] | None = None) -> Image.Image:
    """Return an image of the window, `side` pixels wide and high, with its visible defects."""
    defects = defects or []
    image = Image.new("RGB", (side, side), (196, 205, 214))
    pen = ImageDraw.Draw(image)
    pen.rectangle(_part(side, 0.03, 0.03, 0.97, 0.97), fill=PAPER, outline=BORDER)
    _draw_title(pen, window.title, side, WRONG if "wrong color" in defects else ACCENT)
    _draw_buttons(pen, side, window.missing if "missing button" in defects else None)
    _draw_field(pen, window.typed, side)
    _draw_tick(pen, window.is_ticked, side)
    if window.dialog:
        _draw_dialog(pen, window.dialog, side)
    _draw_sentence(image, window.sentence, side, "text cut off" in defects)
    if "overlapping text" in defects:
        draw_text(pen, (side * 0.2, side * 0.595), "Settings", side * 0.06, anchor="lm")
    return image


def _part(side: int, left: float, top: float, right: float, bottom: float) -> list[float]:
    return [side * left, side * top, side * right, side * bottom]


def _draw_title(pen: ImageDraw.ImageDraw, title: str, side: int, color: tuple[int, int, int]) -> None:
    pen.rectangle(_part(side, 0.03, 0.03, 0.97, 0.15), fill=color)
    draw_text(pen, (side * 0.07, side * 0.09), title, side * 0.07, fill="white", anchor="lm")
    draw_times_sign(pen, (side * 0.91, side * 0.09), side * 0.05, fill="white")


def _draw_buttons(pen: ImageDraw.ImageDraw, side: int, missing: str | None) -> None:
    for number, name in enumerate(MESSAGES):
        if name == missing:
            continue
        left = 0.07 + 0.29 * number
        pen.rounded_rectangle(_part(side, left, 0.19, left + 0.26, 0.3), radius=side * 0.02, fill=QUIET, outline=BORDER)
        draw_text(pen, (side * (left + 0.13), side * 0.245), name, side * 0.06)


def _draw_field(pen: ImageDraw.ImageDraw, typed: str, side: int) -> None:
    pen.rectangle(_part(side, 0.07, 0.36, 0.93, 0.48), fill="white", outline=BORDER)
    text, color = (typed, INK) if typed else ("Type here", BORDER)
    draw_text(pen, (side * 0.1, side * 0.42), text, side * 0.06, fill=color, anchor="lm")


def _draw_tick(pen: ImageDraw.ImageDraw, is_ticked: bool, side: int) -> None:
    pen.rectangle(_part(side, 0.07, 0.55, 0.13, 0.61), fill="white", outline=INK)
    if is_ticked:
        points = [(0.08, 0.58), (0.095, 0.6), (0.125, 0.555)]
        pen.line([(side * x, side * y) for x, y in points], fill=INK, width=max(2, side // 80))
    draw_text(pen, (side * 0.16, side * 0.58), "Remember me", side * 0.06, anchor="lm")


def _draw_dialog(pen: ImageDraw.ImageDraw, message: str, side: int) -> None:
    pen.rectangle(_part(side, 0.18, 0.63, 0.82, 0.82), fill="white", outline=INK)
    draw_text(pen, (side * 0.5, side * 0.685), message, side * 0.06)
    pen.rounded_rectangle(_part(side, 0.42, 0.73, 0.58, 0.81), radius=side * 0.02, fill=QUIET, outline=BORDER)
    draw_text(pen, (side * 0.5, side * 0.77), "OK", side * 0.05)


def _draw_sentence(image: Image.Image, sentence: str, side: int, is_cut: bool) -> None:
    """Draw the status line at the bottom; if cut off, it ends in the middle of a letter."""
    length = font(round(side * 0.06)).getlength(sentence)
    strip = Image.new("RGB", (round(length * (0.55 if is_cut else 1)) + 1, round(side * 0.09)), PAPER)
    draw_text(ImageDraw.Draw(strip), (0, strip.height / 2), sentence, side * 0.06, anchor="lm")
    image.paste(strip, (round(side * 0.07), round(side * 0.86)))
