from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.server_stub import serving
from vlm_grpo.cli.evaluate import UsageError, load_model, load_rows, main, parser
from vlm_grpo.synthetic import DigitFiles


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
    assert results["settings"]["seed"] == results["seed"] == 0
    assert re.fullmatch("[0-9a-f]{16}", results["data"]) and results["data"] != results["prompts"]
    assert results["model_files"]
    assert results["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", results["commit"])
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
        ([], "set either --data_file_paths or --dataset_name"),
        (["--data_file_paths", "a", "--limit", "0"], "must be at least 1, got 0"),
        (["--data_file_paths", "a", "--max_lenght", "3"], "unknown flag --max_lenght; did you mean --"),
    ],
)
def test_evaluate_refuses_wrong_flags(more: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main(["--model_name_or_path", "m", "--output_dir", "o", *more])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["cli.evaluate", "cli.compare", "quickstart.demo"])
def test_help_needs_no_torch(module: str):
    code = (
        f"import sys; from vlm_grpo.{module} import main\n"
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


def asked(digits: DigitFiles, folder: Path, *more: str) -> tuple[dict, list[dict]]:
    """The results of an evaluation through a server that says 7, and the requests."""
    with serving(lambda body: "<think>a</think><answer>7</answer>") as (url, seen):
        flags = ["--backend", "openai", "--base_url", url, "--model_name_or_path", "m", "--limit", "4"]
        data = [] if "--data_file_paths" in more else ["--data_file_paths", str(digits.held_out)]
        images = ["--image_folders", str(digits.images)]
        assert main([*flags, *data, *images, "--output_dir", str(folder), *more]) == 0
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), seen


def test_flags_reach_the_model(digits: DigitFiles, tmp_path: Path):
    _, seen = asked(
        digits, tmp_path / "a", "--temperature", "0.5", "--top_p", "0.8", "--num_samples", "2",
        "--max_completion_length", "9", "--min_pixels", "6400", "--seed", "3",
    )  # fmt: skip
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in seen} == {(0.5, 0.8, 9)}
    assert len(seen) == 8 and len({body["seed"] for body in seen}) == 8
    _, again = asked(digits, tmp_path / "b", "--temperature", "0.5", "--num_samples", "2", "--seed", "4")
    assert not {body["seed"] for body in seen} & {body["seed"] for body in again}
    size = [len(body["messages"][0]["content"][0]["image_url"]["url"]) for body in (seen[0], again[0])]
    assert size[0] > size[1]  # enlarged


def test_flags_reach_metrics_and_results(digits: DigitFiles, tmp_path: Path):
    rows = [json.loads(line) for line in digits.held_out.read_text(encoding="utf-8").splitlines()[:6]]
    lines = [json.dumps({**row, "half": "first" if n < 3 else "second"}) for n, row in enumerate(rows)]
    path = tmp_path / "grouped.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    drawing = ["--temperature", "1", "--num_samples", "3", "--pass_k", "1", "3"]
    results, _ = asked(
        digits, tmp_path / "a", "--data_file_paths", str(path), "--limit", "5", "--group_by", "half", *drawing
    )
    assert list(results["metrics"]) == ["accuracy", "pass@1", "pass@3", "format"]
    assert results["metrics"]["pass@3"]["value"] == results["metrics"]["accuracy"]["value"]  # it always says the same
    assert {name: group["format"]["count"] for name, group in results["groups"].items()} == {"first": 3, "second": 2}
    assert results["settings"]["group_by"] == "half" and results["rows"] == 5
    text = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "3 answers each" in text and "<td>first</td>" in text


def test_format_prompt_reaches_the_model(digits: DigitFiles, tmp_path: Path):
    (tmp_path / "mine.jinja").write_text("Be brief. {{ question }}", encoding="utf-8")
    results, seen = asked(digits, tmp_path / "a", "--format_prompt", str(tmp_path / "mine.jinja"))
    assert any("Be brief." in block.get("text", "") for block in seen[0]["messages"][0]["content"])
    plain, _ = asked(digits, tmp_path / "b")
    assert results["data"] == plain["data"] and results["prompts"] != plain["prompts"]


def test_answer_space_reaches_the_rewards(tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (200, 100)).save(tmp_path / "x.png")
    turns = [{"from": "human", "value": "<image>it"}, {"from": "gpt", "value": [20, 10, 100, 50]}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"image": "x.png", "conversations": turns}) + "\n", encoding="utf-8")
    answer = '<think>a</think><answer>{"bbox_2d": [0.1, 0.1, 0.5, 0.5]}</answer>'
    for space, iou in (("unit", 1.0), ("thousand", 0.0)):
        with serving(lambda body: answer) as (url, _):
            flags = ["--backend", "openai", "--base_url", url, "--model_name_or_path", "m", "--task_type", "rec"]
            data = ["--data_file_paths", str(tmp_path / "x.jsonl"), "--image_folders", str(tmp_path)]
            assert main([*flags, *data, "--answer_space", space, "--output_dir", str(tmp_path / space)]) == 0
        results = json.loads((tmp_path / space / "results.json").read_text(encoding="utf-8"))
        assert results["metrics"]["iou"]["value"] == pytest.approx(iou, abs=1e-6)


def test_a_local_model_is_loaded_as_flags_say(tiny_model: Path):
    import torch

    flags = ["--output_dir", "o", "--data_file_paths", "d", "--min_pixels", "6272", "--max_pixels", "12544"]
    options = parser().parse_args(["--model_name_or_path", str(tiny_model), "--dtype", "bfloat16", *flags])
    model, processor = load_model(options, "cpu")
    assert model.dtype == torch.bfloat16
    assert (processor.image_processor.size["shortest_edge"], processor.image_processor.size["longest_edge"]) == (
        6272,
        12544,
    )


def test_image_tokens_of_a_local_model_are_limited(tiny_model: Path, folder_of: Any):
    given = ["--output_dir", "o", "--data_file_paths", "d", "--model_name_or_path"]
    _, processor = load_model(parser().parse_args([*given, str(tiny_model), "--max_image_tokens", "9"]), "cpu")
    assert processor.image_processor.size["longest_edge"] == 9 * 28 * 28
    with pytest.raises(UsageError, match="--max_image_tokens 3 is too low for Gemma3"):
        load_model(parser().parse_args([*given, str(folder_of("gemma3")), "--max_image_tokens", "3"]), "cpu")


def test_boxes_in_a_guessed_space_are_told_of(folder_of: Any, capsys: pytest.CaptureFixture):
    given = ["--output_dir", "o", "--data_file_paths", "d", "--model_name_or_path", str(folder_of("mistral3"))]
    load_model(parser().parse_args(given), "cpu")
    assert "boxes" not in capsys.readouterr().err
    load_model(parser().parse_args([*given, "--task_type", "rec"]), "cpu")
    assert "boxes are read as pixels of the original image: no coordinate space" in capsys.readouterr().err


def test_a_local_models_answer_space_can_be_given(tiny: tuple, rows: object):
    from vlm_grpo.evaluation.backends.hf import HFBackend

    def space(**options: str) -> str:
        (batch,) = HFBackend(*tiny, max_completion_length=1, **options)(rows, [0])
        return batch[0].completions[0].facts["answer_space"]

    assert (space(), space(answer_space="unit")) == ("resized", "unit")


def test_data_flags_reach_the_rows(tmp_path: Path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 40)).save(tmp_path / "x.png")
    row = {"ask": "How many?", "say": "3", "see": "../x.png"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    keys = ["--prompt_key", "ask", "--answer_key", "say", "--image_key", "see", "--reward_method", "exact"]
    data = ["--data_file_paths", str(tmp_path / "x.jsonl"), "--image_folders", str(tmp_path / "in")]
    flags = ["--model_name_or_path", "m", "--output_dir", "o", "--task_type", "counting", *keys, *data]
    with pytest.raises(UsageError, match=r"\.\."):
        load_rows(parser().parse_args(flags))
    (found,) = load_rows(parser().parse_args([*flags, "--allow_outside"]))
    record = found["record"]
    assert (record.question.removeprefix("<image>"), record.answer) == ("How many?", "3")
    assert (record.method, record.task) == ("exact", "counting")
    assert record.images[0].source.endswith("x.png")


def test_video_key_names_the_column(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.jsonl").write_text('{"clip": "a.mp4", "problem": "q", "answer": "a"}\n', encoding="utf-8")
    flags = ["--model_name_or_path", "m", "--output_dir", "o", "--data_file_paths", str(tmp_path / "a.jsonl")]
    flags += ["--image_folders", str(tmp_path)]
    assert not load_rows(parser().parse_args(flags))[0]["videos"]
    (video,) = load_rows(parser().parse_args([*flags, "--video_key", "clip"]))[0]["videos"]
    assert video.source == str(tmp_path / "a.mp4")


def test_reasoning_options_reach_the_rewards(digits: DigitFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vlm_grpo.evaluation import predictions

    given = {}

    def remember(names: list[str], options: dict) -> object:
        given.update(options)
        return load(names)

    load = predictions.load_scorer
    monkeypatch.setattr(predictions, "load_scorer", remember)
    flags = ["--reasoning_encoder", "e", "--reasoning_device", "cpu", "--reasoning_threshold", "0.4"]
    asked(digits, tmp_path / "a", *flags)
    assert given == {"encoder": "e", "device": "cpu", "threshold": 0.4}


def test_an_unknown_group_is_refused_before_anything_is_loaded(
    tiny_model: Path, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(words(tiny_model, digits, tmp_path / "out", "--group_by", "colour")) == 2
    assert "--group_by colour: no row has this column" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_goes_on_where_two_were_stopped(
    tiny_model: Path, digits: DigitFiles, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A second process that dies leaves what both had; the rest is done by one."""
    flags = ["--limit", "9", "--batch_size", "1", "--temperature", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    stopper = tmp_path / "stopper.py"
    stopper.write_text(
        "import os, sys\n"
        "from vlm_grpo.evaluation import prediction_cache\n"
        "append = prediction_cache.PredictionWriter.__call__\n"
        "def stop(self, predictions):\n"
        "    append(self, predictions)\n"
        "    if self.path.read_bytes().count(b'\\n') == 2 and self.path.name.endswith('-1.jsonl'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "prediction_cache.PredictionWriter.__call__ = stop\n"
        "from vlm_grpo.cli.evaluate import main\n"
        "sys.exit(main())\n",
        encoding="utf-8",
    )
    command = [*launch, str(stopper), *words(tiny_model, digits, tmp_path / "two", *flags)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode != 0
    main(words(tiny_model, digits, tmp_path / "one", *flags))
    capsys.readouterr()
    assert main(words(tiny_model, digits, tmp_path / "two", *flags)) == 0
    assert re.search("resuming: [2-8] of 9 rows", capsys.readouterr().out)
    one, two = ((tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8") for name in ("one", "two"))
    assert one == two
