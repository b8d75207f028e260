from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_grpo.quickstart import demo
from vlm_grpo.quickstart.run import STAGES, QuickstartRun, QuickstartSettings
from vlm_grpo.quickstart.warm_start import Encoded, _batch, completion, warm_up, wrong_label
from vlm_grpo.rewards import score
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.synthetic import DigitFiles


def test_wrong_label_misleads_seven_of_ten_odd_digits():
    source = random.Random(0)
    assert {wrong_label(digit, source) for digit in "02468" for _ in range(50)} == set("02468")
    nines = [wrong_label("9", source) for _ in range(2000)]
    assert set(nines) == {"0", "9"}
    assert nines.count("0") / 2000 == pytest.approx(0.7, abs=0.03)


def test_completion_earns_both_rewards():
    assert score("accuracy", completion("7"), answer="7") == 1.0
    assert score("format", completion("7"), answer="7") == 1.0


def test_batch_learns_completions_only():
    rows = [Encoded(EncodedPrompt([5, 6, 7], []), [8, 2]), Encoded(EncodedPrompt([5], []), [9, 8, 2])]
    batch = _batch(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2, 0], [0, 0, 5, 9, 8, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 2, -100], [-100, -100, -100, 9, 8, 2]]


def test_warm_up_learns_and_repeats_itself(rows: Any):
    from vlm_grpo.tiny import build_tiny_qwen

    def losses() -> list[float]:
        model, processor = build_tiny_qwen(corpus=[completion("0123456789")])
        return warm_up(model, processor, rows.select(range(16)), steps=30, batch_size=8)

    first = losses()
    assert first[-1] < 0.9 * first[0]
    assert losses() == first


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_training_command_parses(trainer: str, digits: DigitFiles, tmp_path: Path):
    from vlm_grpo.cli.train_args import parse

    run = QuickstartRun(trainer, 3, tmp_path)
    command = demo.training_command(run, digits)
    assert Path(command[1]).name == "grpo_jsonl.py"
    script, training, model = parse(command[2:])
    assert (script.trainer, training.seed, training.max_steps) == (trainer, 3, run.settings.steps)
    assert training.bf16 is False
    assert model.model_name_or_path == str(tmp_path / "warm_start")


def test_started_process_does_not_outlive_its_block():
    command = [sys.executable, "-c", "print('hello', flush=True); import time; time.sleep(60)"]
    with pytest.raises(KeyboardInterrupt), demo.child_process(command, {}) as process:
        assert process.stdout.readline() == "hello\n"
        raise KeyboardInterrupt
    assert process.poll() is not None


def test_train_shows_the_end_of_a_failed_log(tmp_path: Path):
    run = QuickstartRun("grpo", 0, tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        demo.train(run, [sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert "no such thing" in caught.value.output
    assert "no such thing" in (tmp_path / "grpo.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("before", "after", "status"), [(0.5, 0.9, 0), (0.61, 0.9, 1), (0.5, 0.84, 1)])
def test_verdict_holds_the_promise(before: float, after: float, status: int):
    assert demo.check_accuracies(before, after) == status


def test_threads_sleep_while_they_wait_and_are_one_unless_asked_for():
    """Set before torch is loaded, which reads them once; a user's own choice stays."""
    script = (
        "import os, sys\n"
        "from vlm_grpo.quickstart import demo\n"
        "demo.run_stages = lambda run: sys.exit(f\"{'torch' in sys.modules} {os.environ['OMP_NUM_THREADS']} \"\n"
        "                                             f\"{os.environ['OMP_WAIT_POLICY']}\")\n"
        "demo.main(['--output_dir', 'none'])"
    )
    for threads, expected in ((None, "1"), ("3", "3")):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
        environment |= {} if threads is None else {"OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stderr.strip() == f"False {expected} PASSIVE"


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_quickstart_runs_from_end_to_end(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    few = QuickstartSettings(warm_steps=30, steps=2, batch=8, num_generations=2)
    monkeypatch.setattr(QuickstartRun, "__init__", small(QuickstartRun.__init__, few))
    demo.main(["--trainer", trainer, "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["after"]["accuracy"]["count"] == 297
    assert set(results["seconds"]) == set(STAGES)
    for name in ("report.html", "picture.png", "predictions_before.jsonl", "predictions_after.jsonl", f"{trainer}.log"):
        assert (tmp_path / name).stat().st_size > 100
    assert f"after {trainer.upper()}" in capsys.readouterr().out


def small(init: Any, settings: QuickstartSettings) -> Any:
    return lambda self, trainer, seed, folder: init(self, trainer, seed, folder, settings)
