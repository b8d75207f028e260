"""`vlm-grpo evaluate --backend vllm`: the same completions as with transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.training import picture
from tests.vllm.conftest import OPTIONS
from vlm_grpo.cli.evaluate import main


def write_rows(folder: Path, count: int) -> None:
    """Rows with no, one and two images."""
    with (folder / "a.jsonl").open("w") as file:
        for number in range(count):
            images = [f"{number}_{place}.png" for place in range(number % 3)]
            for place, name in enumerate(images):
                picture(number + place, height=56 + 28 * place).save(folder / name)
            turns = [
                {"from": "human", "value": "<image>" * len(images) + "Which?" + " please" * (number % 5)},
                {"from": "gpt", "value": str(number)},
            ]
            file.write(json.dumps({"id": number, "image": images, "conversations": turns}) + "\n")


def test_fifty_examples_agree_with_transformers(untied_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_rows(tmp_path, 50)
    words = ["--model_name_or_path", str(untied_model), "--data_file_paths", str(tmp_path / "a.jsonl")]
    words += ["--image_folders", str(tmp_path), "--max_completion_length", "12", "--use_cpu", "--backend", "vllm"]
    words += ["--engine_options", json.dumps(OPTIONS), "--dtype", "float32", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--agreement", "50"]) == 0
    assert "agreement of vllm with transformers on 50 rows: 50 equal completions, 100.0 %" in capfd.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["agreement"] == {"rows": 50, "equal": 50, "prefix": 1.0}
    assert results["examples"] == 50
