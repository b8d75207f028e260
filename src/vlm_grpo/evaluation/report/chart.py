"""A reward curve as SVG for reports and, with sample answers, as a PNG image."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.evaluation.report.cards import ExampleCard

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BLUE, GREEN, RED, INK, GRID = "#1d5fd0", "#1a7f37", "#c62828", "#3b4252", "#dfe3ea"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 52, 110, 14, 40


@dataclass(frozen=True)
class Curve:
    """A fraction (0 to 1) over training steps, and marked values: (step, fraction, label)."""

    steps: Sequence[int]
    values: Sequence[float]
    label: str
    marks: Sequence[tuple[int, float, str]] = ()


def smooth(values: Sequence[float], window: int = 9) -> list[float]:
    """Return the moving average, over fewer values at the ends."""
    half = window // 2
    parts = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def curve_svg(curve: Curve) -> str:
    """Return the curve as an SVG element: single steps faint, their moving average bold, marks as labeled dots."""
    from markupsafe import Markup

    last = max([*curve.steps, *(step for step, _, _ in curve.marks), 1])

    def place(step: float, share: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return round(x, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)

    def line(values: Sequence[float], width: float, opacity: float) -> str:
        points = " ".join("{},{}".format(*place(*pair)) for pair in zip(curve.steps, values, strict=True))
        return f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="{width}" opacity="{opacity}"/>'

    parts = [_axes(place, last), line(curve.values, 1, 0.3), line(smooth(curve.values), 2.5, 1)]
    for step, share, label in curve.marks:
        x, y = place(step, share)
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{GREEN}"/>')
        parts.append(f'<text x="{x + 9}" y="{y + 4}" fill="{GREEN}">{escape(label)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">training step</text>')
    name = escape(curve.label)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}" font-size="12" fill="{INK}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _axes(place: Callable[[float, float], tuple[float, float]], last: int) -> str:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        x, y = place(0, percent / 100)
        parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{percent} %</text>')
    for step in _ticks(last):
        x, y = place(step, 0)
        parts.append(f'<text x="{x}" y="{y + 17}" text-anchor="middle">{step}</text>')
    return "".join(parts)


def _ticks(last: int) -> list[int]:
    """Return four to eight round step numbers, starting at 0."""
    scale = 10 ** max(0, len(str(last)) - 2)
    width = next(size * scale for size in (1, 2, 5, 10, 20) if last / (size * scale) <= 8)
    return list(range(0, last + 1, width))


def save_picture(path: str | Path, title: str, curve: Curve, cards: Sequence[ExampleCard]) -> Path:
    """Write a PNG with the curve on the left, and the first image of each card with its answers on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display and no global state
    figure.suptitle(title, fontsize=14, color=INK)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.1), wspace=0.05).flatten()
    _draw_curve(left.subplots(), curve)
    columns = max(1, (len(cards) + 1) // 2)
    axes = right.subplots(2, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, card in zip(axes, cards, strict=False):
        _draw_card(axis, card)
    figure.savefig(path)
    return Path(path)


def _draw_curve(axis: Axes, curve: Curve) -> None:
    axis.plot(curve.steps, curve.values, color=BLUE, alpha=0.3, linewidth=1)
    axis.plot(curve.steps, smooth(curve.values), color=BLUE, linewidth=2.5, label=curve.label)
    for step, share, label in curve.marks:
        axis.plot([step], [share], "o", color=GREEN, markersize=7, clip_on=False, zorder=3)
        axis.annotate(label, (step, share), (8, -4), textcoords="offset points", color=GREEN, annotation_clip=False)
    axis.set(ylim=(0, 1), xlabel="training step")
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.grid(color=GRID)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)


def _draw_card(axis: Axes, card: ExampleCard) -> None:
    from matplotlib.image import imread

    axis.imshow(imread(io.BytesIO(card.images[0])), cmap="gray")
    axis.set_title(f"true: {card.truth}", fontsize=10, color=INK)
    colors = {True: GREEN, False: RED, None: INK}
    for line, answer in enumerate(card.answers):
        axis.text(
            0.5,
            -0.09 - 0.16 * line,
            f"{answer.label}: {answer.text:.14}",
            ha="center",
            va="top",
            transform=axis.transAxes,
            color=colors[answer.is_right],
            fontsize=10,
        )
