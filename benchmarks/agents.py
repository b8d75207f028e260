"""Does a tiny model learn to act on what it sees? `pick_image` with RLOO and GRPO, a fixed and a drawn right index.

python benchmarks/agents.py --folder agents_output                    every run, three seeds
python benchmarks/agents.py --folder agents_output --seeds 0 --trainers rloo --indexes fixed
python benchmarks/agents.py --report                                  the picture and the table of agents.json

A Qwen2.5-VL of a million parameters first learns to see, from right answers to plain questions: what images show, and
their numbers. Then it is taught to call, and last a habit that succeeds about at chance: once in four times it picks
the image that is asked for, else another, and says which ("asked: red 2"). From there on the training command plays
episodes, whose rewards alone tell it what to do. Success is counted on episodes of another seed, sampled as in
training, before and after; with a fixed index the image that is asked for is always at 0, and nothing needs to be seen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"hidden": 128, "layers": 3, "heads": 4, "intermediate": 384, "vision_hidden": 64, "vision_layers": 2}
SEEING_STEPS, CALLING_STEPS, HABIT_STEPS = 1000, 450, 150
STEPS = {"fixed": 80, "drawn": 50}
EPISODES = 200  # held out
HELD_OUT_SEED = 1_000
INDEXES = {"fixed": ("--fixed_correct_index", "0"), "drawn": ("--fixed_correct_index", "-1")}
RATE = "3e-4"


def opened_rows(processor: Any, images: Path, count: int, seed: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """The rows of some episodes as the model is shown them, and their environments."""
    from vlm_grpo.envs.pick_image import PickImage, repeatable_episodes
    from vlm_grpo.rollouts.env_pool import EnvPool

    env_pool = EnvPool([], lambda: PickImage(data_root=str(images), fixed_correct_index=-1))
    env_pool.choose_tool_parsers("auto", processor.chat_template)
    trajectories, rows = env_pool.start(list(islice(repeatable_episodes(seed), count)))
    return rows, [trajectory.environment for trajectory in trajectories]


def corpus(images: Path) -> list[str]:
    """What the tokenizer knows as whole words: the questions, the tools and their calls."""
    from vlm_grpo.envs.environment import tool_schema
    from vlm_grpo.envs.pick_image import PickImage
    from vlm_grpo.envs.tool_parser import HermesToolParser, make_tool_call_str
    from vlm_grpo.synthetic.candidates import COLORS

    tool = PickImage(data_root=str(images)).pick_image
    told = HermesToolParser().prompt([], [tool_schema("pick_image", tool)])[0]["content"]
    names = " ".join(COLORS)
    asked = f"0: 1: 2: 3: Which image shows: {names}? Call pick_image with its number. asked: another: 0 1 2 3"
    return [told, asked, *(make_tool_call_str("pick_image", {"index": n}) for n in range(4))] * 20


def places(row: dict[str, Any], correct: int, source: random.Random) -> list[str]:
    """What each image of an episode shows and its number, "red 2", the one that is asked for first."""
    from vlm_grpo.envs.pick_image import subject_of

    blocks = row["prompt"][-1]["content"]
    names = [subject_of(Path(block["image"].source)) for block in blocks if block["type"] == "image"]
    others = [place for place in range(len(names)) if place != correct]
    source.shuffle(others)
    return [f"{names[place]} {place}" for place in (correct, *others)]


def act(seen: list[str], asked: float, source: random.Random) -> str:
    """A call as it is taught: with a chance for the image that is asked for, else for another; it says which before."""
    from vlm_grpo.envs.tool_parser import make_tool_call_str

    is_asked = source.random() < asked
    said = seen[0] if is_asked else source.choice(seen[1:])
    call = make_tool_call_str("pick_image", {"index": int(said.split()[-1])})
    return f"{'asked' if is_asked else 'another'}: {said} {call}"


def warm_model(folder: Path, images: Path) -> Path:
    """A model that sees, calls, and picks at chance; made once."""
    import torch

    from vlm_grpo.masks import encode_mask
    from vlm_grpo.quickstart.warm_start import fit
    from vlm_grpo.tiny import TinySize, build_tiny_qwen

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    model, processor = build_tiny_qwen(
        TinySize(**SIZE, vocabulary=900), corpus=corpus(images), min_pixels=56 * 56, max_pixels=56 * 56
    )
    rows, environments = opened_rows(processor, images, 10_000, seed=7)
    source = random.Random(0)
    plain = [{**row, "prompt": row["prompt"][1:]} for row in rows]  # without the system turn that tells of tools
    seen = [places(row, environment.correct, source) for row, environment in zip(rows, environments, strict=True)]
    seeing = encode_mask(processor, plain, [" ".join(each) for each in seen])

    def tell(name: str) -> Any:
        losses: list[float] = []

        def count(loss: float) -> None:
            losses.append(loss)
            if len(losses) % 50 == 0:
                print(f"{name}: step {len(losses)}, loss {sum(losses[-50:]) / 50:.3f}", flush=True)

        return count

    fit(model, processor, seeing, source, steps=SEEING_STEPS, on_step=tell("seeing"))
    for name, steps, chance in (("calling", CALLING_STEPS, 1.0), ("habit", HABIT_STEPS, 1 / 4)):
        calls = encode_mask(processor, rows[:4000], [act(each, chance, source) for each in seen[:4000]])
        fit(model, processor, calls, source, steps=steps, batch_size=16, on_step=tell(name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def success(model: Path, images: Path, index: str) -> float:
    """Success of sampled episodes that are held out, by the evaluation command."""
    output = model / f"evaluation_{index}"
    words = ["evaluate", "--model_name_or_path", str(model), "--environment", "pick_image", "--data_root", str(images)]
    words += ["--limit", str(EPISODES), "--seed", str(HELD_OUT_SEED), "--max_turns", "1", "--use_cpu", "--overwrite"]
    words += ["--temperature", "1"]
    run(["-m", "vlm_grpo.cli.main", *words, *INDEXES[index], "--max_completion_length", "40", "--batch_size", "25",
         "--output_dir", str(output)])  # fmt: skip
    return json.loads((output / "results.json").read_text())["metrics"]["success"]["value"]


def train(model: Path, images: Path, folder: Path, trainer: str, index: str, seed: int) -> list[float]:
    """Train by the command; returns the success of the sampled episodes of every step."""
    words = ["src/vlm_grpo/grpo_jsonl.py", "--trainer", trainer, "--model_name_or_path", str(model)]
    words += ["--environment", "pick_image", "--data_root", str(images), *INDEXES[index], "--max_turns", "1"]
    words += ["--output_dir", str(folder), "--seed", str(seed), "--max_steps", str(STEPS[index])]
    words += ["--per_device_train_batch_size", "64", "--num_generations", "8", "--max_completion_length", "40"]
    words += ["--learning_rate", RATE, "--lr_scheduler_type", "constant", "--logging_steps", "1", "--bf16", "false"]
    words += ["--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--live_report", "false"]
    run(words)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["episodes/success"] for entry in log if "episodes/success" in entry]


def run(words: Sequence[str]) -> None:
    """A command of this package in a process of its own."""
    known = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=known, check=True, stdout=subprocess.DEVNULL)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every run that the flags ask for: success before and after on held-out episodes, and at every step."""
    from vlm_grpo.synthetic.candidates import write_candidates

    folder = Path(options.folder)
    images = folder / "toy_images"
    write_candidates(images)
    start = warm_model(folder / "warm", images)
    before = {index: success(start, images, index) for index in options.indexes}
    results = []
    for index in options.indexes:
        for trainer in options.trainers:
            for seed in options.seeds:
                place = folder / f"{trainer}_{index}_{seed}"
                curve = train(start, images, place, trainer, index, seed)
                after = success(place, images, index)
                results.append({"trainer": trainer, "index": index, "seed": seed, "before": before[index],
                                "after": after, "curve": curve})  # fmt: skip
                print(f"{trainer} {index} seed {seed}: {before[index]:.3f} -> {after:.3f}", flush=True)
                if options.output:  # after each, so that a run that was stopped leaves what it has
                    Path(options.output).write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """A line for each trainer and kind of index."""
    lines = ["| index | trainer | steps | before | after, of each seed |", "|---|---|---|---|---|"]
    for index in INDEXES:
        for trainer in ("rloo", "grpo"):
            runs = [run for run in results if (run["index"], run["trainer"]) == (index, trainer)]
            if runs:
                after = ", ".join(f"{100 * run['after']:.1f} %" for run in runs)
                steps = len(runs[0]["curve"])
                lines.append(f"| {index} | {trainer} | {steps} | {100 * runs[0]['before']:.1f} % | {after} |")
    return "\n".join(lines)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """The success of the sampled episodes of every step, a panel for each kind of index."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, index in zip(figure.subplots(1, 2, sharey=True), INDEXES, strict=True):
        axis.axhline(0.25, color="#8a919e", linewidth=1, linestyle=":")
        for trainer, color in (("rloo", "#1d5fd0"), ("grpo", "#d95f0e")):
            runs = [run for run in results if (run["index"], run["trainer"]) == (index, trainer)]
            for number, run in enumerate(runs):
                axis.plot(run["curve"], color=color, linewidth=1, alpha=0.75, label=None if number else trainer)
        axis.set(title=f"right index {index}", xlabel="step", ylim=(0, 1))
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("success of sampled episodes")
    figure.axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path)


def report() -> None:
    """Put the table and the picture into docs/agents.md."""
    results = json.loads((ROOT / "benchmarks" / "agents.json").read_text())
    draw(results, ROOT / "docs" / "agents.png")
    page = ROOT / "docs" / "agents.md"
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- measured: begin -->\n", "<!-- measured: end -->"
    head, rest = text.split(begin)
    page.write_text(f"{head}{begin}\n{table(results)}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="agents_output", help="for images, models and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trainers", nargs="+", default=["rloo", "grpo"], choices=["rloo", "grpo"])
    parser.add_argument("--indexes", nargs="+", default=list(INDEXES), choices=list(INDEXES))
    parser.add_argument("--output", help="where the results go, as JSON")
    parser.add_argument("--report", action="store_true", help="only make the table and picture of agents.json")
    options = parser.parse_args()
    if options.report:
        report()
        return
    print(table(measure(options)))


if __name__ == "__main__":
    main()
