from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_grpo.cli.evaluate import main
from vlm_grpo.data.toy import DigitFiles


def words(model: Path, digits: DigitFiles, output: Path, *more: str) -> list[str]:
    flags = {
        "model_name_or_path": model,
        "data_file_paths": digits.held_out,
        "image_folders": digits.images,
        "output_dir": output,
        "max_completion_length": 4,
    }
    return [*(word for name, value in flags.items() for word in (f"--{name}", str(value))), "--use_cpu", *more]


def test_evaluate_writes_results_predictions_and_report(
    tiny_model: Path, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(words(tiny_model, digits, tmp_path / "out", "--limit", "5", "--batch_size", "2")) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["task"], results["examples"]) == ("default", 5)
    assert results["metrics"]["accuracy"]["count"] == 5
    assert results["settings"]["seed"] == 0
    assert results["versions"]["torch"]
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 1, 2, 3, 4]
    assert "data:image/png" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "accuracy" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.partial"))


def test_evaluate_names_bad_data_without_a_traceback(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "bad.jsonl").write_text("{\n", encoding="utf-8")
    flags = ["--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out")]
    assert main([*flags, "--data_file_paths", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "one of --data_file_paths and --dataset_name"),
        (["--data_file_paths", "a", "--limit", "0"], "must be at least 1, got 0"),
        (["--data_file_paths", "a", "--max_lenght", "3"], "unrecognized arguments"),
    ],
)
def test_evaluate_refuses_wrong_flags(more: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main(["--model_name_or_path", "m", "--output_dir", "o", *more])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["evaluate", "quickstart"])
def test_help_needs_no_torch(module: str):
    code = (
        f"import sys; from vlm_grpo.cli.{module} import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert time.monotonic() - started < 10  # about 0.1 s; a loaded machine is no error


@pytest.mark.slow
@pytest.mark.multiprocess
def test_evaluate_on_two_processes_finds_what_one_finds(tiny_model: Path, digits: DigitFiles, tmp_path: Path):
    main(words(tiny_model, digits, tmp_path / "one", "--limit", "5"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "vlm_grpo.cli.evaluate", *words(tiny_model, digits, tmp_path / "two", "--limit", "5")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("one", "two")
    )
    assert one == two
