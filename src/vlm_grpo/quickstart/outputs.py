"""Output files of the quickstart: report.html, picture.png, and both sets of predictions."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from vlm_grpo.evaluation.report.chart import Curve, save_picture
from vlm_grpo.evaluation.report.page import ExampleCard, Section, answer_of, thumbnail, write_report
from vlm_grpo.evaluation.results import versions
from vlm_grpo.evaluation.strict_json import dumps
from vlm_grpo.io import write_whole

if TYPE_CHECKING:
    from vlm_grpo.evaluation import Evaluation
    from vlm_grpo.quickstart.run import QuickstartRun


def write_outputs(run: QuickstartRun, before: Evaluation, after: Evaluation, curve: Curve, command: list[str]) -> None:
    """Write all output files to the folder of the run."""
    for name, evaluation in (("before", before), ("after", after)):
        lines = [dumps(prediction, ensure_ascii=False) + "\n" for prediction in evaluation.predictions]
        write_whole(run.folder / f"predictions_{name}.jsonl", "".join(lines))
    start, end = before.main.value, after.main.value
    if start is None or end is None:
        raise ValueError("the evaluation has no accuracy")
    marks = ((0, start, f"held out {start:.1%}"), (curve.steps[-1], end, f"held out {end:.1%}"))
    curve = replace(curve, marks=marks)
    cards = one_card_per_digit(before, after)
    title = f"Handwritten digits, tiny Qwen2.5-VL, {run.trainer.upper()}, seed {run.seed}"
    save_picture(run.folder / "picture.png", title, curve, cards)
    write_report(run.folder / "report.html", title, lead(before), sections(run, before, after, curve, cards, command))


def one_card_per_digit(before: Evaluation, after: Evaluation) -> list[ExampleCard]:
    """Return a card for the first held-out image of each digit, independent of the answers."""
    first: dict[str, int] = {}
    for index, prediction in enumerate(before.predictions):
        first.setdefault(str(prediction["answer"]), index)
    metric = next(iter(before.metrics))
    return [
        ExampleCard(
            images=tuple(thumbnail(source) for source in before.predictions[index]["images"]),
            question="",
            truth=digit,
            answers=(
                answer_of(before.predictions[index], metric, "before"),
                answer_of(after.predictions[index], metric, "after"),
            ),
        )
        for digit, index in sorted(first.items())
    ]


def lead(before: Evaluation) -> str:
    """Return an introduction for readers who know nothing about the run."""
    return (
        "A Qwen2.5-VL with about one million parameters was initialized at random and fine-tuned to answer in the "
        "format <think>...</think><answer>...</answer>. Its labels were partly wrong: seven of ten odd digits were "
        "labelled one too high. Then reinforcement learning rewarded correct answers. The accuracy is measured on "
        f"{len(before.predictions)} held-out images with greedy decoding."
    )


def sections(
    run: QuickstartRun,
    before: Evaluation,
    after: Evaluation,
    curve: Curve,
    cards: list[ExampleCard],
    command: list[str],
) -> list[Section]:
    """Return the parts of the page."""
    metrics = [[name, str(before.metrics[name]), str(after.metrics[name])] for name in before.metrics]
    times = [[name, f"{value:.1f} s"] for name, value in run.seconds.items()]
    settings = [[name, str(value)] for name, value in {**asdict(run.settings), **versions()}.items()]
    return [
        Section("Result", header=("mean [95 % interval]", "before", f"after {run.trainer.upper()}"), rows=metrics),
        Section(
            "Reward during training", f"Fraction of correct answers among {run.settings.batch} samples.", curve=curve
        ),
        Section("Answers before and after", "The first held-out image of each digit.", cards=cards),
        Section("The training command", code=shlex.join(command)),
        Section("Time", rows=times),
        Section("Settings and versions", rows=settings),
    ]
