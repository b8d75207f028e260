"""The stages of `benchmarks/gpu.sh`: each is a command with a limit in seconds, and the report after every one.

The output folder is flat and has few files: `stages.json`, `report.md`, `log.txt`, and what the stages write.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from computer import describe

ROOT = Path(__file__).resolve().parents[1]
REAL = {"size": "--large", "repeats": 2, "workers": 8}
REHEARSAL = {"size": "--rehearse", "repeats": 1, "workers": 0}


@dataclass(frozen=True)
class Stage:
    """A command of this Python.

    Attributes:
        words: after the interpreter; `{size}` is --large or --rehearse, `{out}` the output folder, `{repeats}` and
            `{workers}` are fewer in a rehearsal.
        limit: seconds after which it is stopped.
        needs_gpu: whether a rehearsal leaves it out.
    """

    name: str
    words: str
    limit: int
    needs_gpu: bool = False


STEP = "benchmarks/step.py {size} --output {out}/step.json --repeats"
DECODING = "benchmarks/decoding.py {size} --output {out}/decoding.json --ways"
# In order of importance: the first three, and installing, take at most four minutes.
STAGES = (
    Stage("tests", "-m pytest -p no:cacheprovider -m gpu -vv -n {workers} tests/trainers/test_gpu.py", 77),
    Stage("step", f"{STEP} {{repeats}} --settings p1100_c128", 115),
    Stage("decoding", f"{DECODING} captured", 28, needs_gpu=True),
    Stage("learning", "benchmarks/learning.py {size} --output {out}/learning.json", 110),
    Stage("long", f"{STEP} 1 --settings p1100_c512", 115),
    Stage("frozen", f"{STEP} 1 --settings p1100_c128_frozen", 60),
    Stage("eager", f"{DECODING} dynamic", 25),
)


@dataclass
class Outcome:
    """What became of a stage: `passed`, `failed (status)`, `stopped after N s`, `left out: why`."""

    name: str
    result: str
    seconds: float = 0.0
    said: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU; what needs a GPU says so")
    parser.add_argument("--output", type=Path, required=True, help="folder for results; is made, or added to")
    parser.add_argument("--seconds", type=float, default=530, help="for all stages together")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="default: all, as far as time allows")
    parser.add_argument("--began", type=float, default=0, help="seconds that are gone already")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.rehearse and "card" not in describe():
        parser.error("no GPU: nvidia-smi lists none; --rehearse runs the same stages on a CPU")
    deadline = time.monotonic() + options.seconds - options.began
    before = options.output / "stages.json"
    outcomes = [Outcome(**known) for known in json.loads(before.read_text())["stages"]] if before.exists() else []
    outcomes = [outcome for outcome in outcomes if outcome.name not in options.stages]
    for stage in [stage for stage in STAGES if stage.name in options.stages]:
        outcomes.append(run(stage, options.output, options.rehearse, deadline - time.monotonic()))
        print(f"{outcomes[-1].name}: {outcomes[-1].result} ({outcomes[-1].seconds:.0f} s)", flush=True)
        write(options.output, outcomes)
    return int(any(outcome.result.startswith("failed") for outcome in outcomes))


def run(stage: Stage, folder: Path, is_rehearsal: bool, left: float) -> Outcome:
    """Run a stage within its limit and what is left of the whole, with its output at the end of log.txt."""
    if is_rehearsal and stage.needs_gpu:
        return Outcome(stage.name, "left out: needs a GPU")
    limit = min(stage.limit, left) if not is_rehearsal else left
    if limit < 5:
        return Outcome(stage.name, "left out: no time left")
    scale = REHEARSAL if is_rehearsal else REAL
    words = [word.format(out=folder, **scale) for word in stage.words.split()]
    began, log = time.monotonic(), folder / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== {stage.name}: {' '.join(words)}\n")
        file.flush()
        start = file.tell()
        status = waited([sys.executable, *words], file, limit)
    seconds = time.monotonic() - began
    said = log.read_bytes()[start:].decode(errors="replace")
    result = {0: "passed", None: f"stopped after {limit:.0f} s"}.get(status, f"failed ({status})")
    return Outcome(stage.name, result, seconds, counts(said) if stage.name == "tests" else "")


def waited(words: Sequence[str], log: object, limit: float) -> int | None:
    """Return the status of a command; None if it was stopped, with all that it started, at its limit."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def counts(said: str) -> str:
    """Return how many tests pytest reported so far, by outcome, and the names of those that failed."""
    kinds = ("PASSED", "FAILED", "SKIPPED", "ERROR")
    any_of = "|".join(kinds)
    outcomes = {name: kind for kind, name in re.findall(rf"({any_of}) (\S+::\S+)", said)}  # of several workers
    outcomes |= dict(re.findall(rf"(\S+::\S+) ({any_of})", said))
    listed = [f"{list(outcomes.values()).count(kind)} {kind.lower()}" for kind in kinds]
    failed = [name.split("::", 1)[1] for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    return ", ".join([*listed, *failed])


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes, and a page with everything that is there; a fault of the page does not end the run."""
    content = {"computer": describe(), "stages": [asdict(outcome) for outcome in outcomes]}
    (folder / "stages.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (folder / "report.md").open("w", encoding="utf-8") as page:
        words = [sys.executable, "benchmarks/step_report.py", "--show", "--gpu", str(folder)]
        subprocess.run(words, cwd=ROOT, stdout=page, check=False)


if __name__ == "__main__":
    sys.exit(main())
