"""Every way to start a training starts the same program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.files import turns, write_images, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "src/vlm_grpo/grpo_jsonl.py"
ON_CPU = {"ACCELERATE_USE_CPU": "true"}
ZERO3_ON_CPU = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
LAUNCHERS = {
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", SCRIPT],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", SCRIPT],
    "module": ["-m", "vlm_grpo.grpo_jsonl"],
    "console": ["-c", "import sys; from vlm_grpo.cli.main import main; sys.exit(main())", "train"],
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_step_by_every_launcher(launcher: str, tiny_model: Path, tmp_path: Path):
    rows = [{"image": f"{n}.png", "conversations": turns("<image>q", str(n))} for n in range(3)]
    words = [
        *("--data_file_paths", write_jsonl(tmp_path / "a.jsonl", rows), "--image_folders", str(write_images(tmp_path))),
        *("--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "out"), "--max_steps", "1"),
        *("--per_device_train_batch_size", "2", "--num_generations", "2", "--max_completion_length", "4"),
        *("--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    if launcher == "deepspeed":
        environment |= ZERO3_ON_CPU
        words += ["--deepspeed", "configs/deepspeed/zero3.json"]
    else:
        environment |= ON_CPU
        words += ["--use_cpu", "true"]
    command = [sys.executable, *LAUNCHERS[launcher], *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    processes = 2 if launcher in ("torchrun", "deepspeed") else 1
    assert state["global_step"] == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == processes
    assert (tmp_path / "out" / "model.safetensors").is_file()
