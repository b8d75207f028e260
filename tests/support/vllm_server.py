"""A real vLLM server for tests, from the interpreter of an environment of its own, and the model that it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from vlm_grpo.tiny import TinySize

VARIABLE = "VLLM_PYTHON"  # of the environment: an interpreter that imports vLLM
START_SECONDS = 600
# A small cache, no compiler, and every request of the dev mode.
SETTINGS = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
# vLLM on a CPU wants heads of 32, and is wrong with tied embeddings.
SIZE = TinySize(hidden=64, intermediate=128, vision_hidden=64, is_tied=False)


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class VLLMServer:
    """A process that serves a model on this machine.

    Args:
        model: folder of the model.
        log: file for its output.
        port: that it listens at.
        options: further ones of the command line.
    """

    def __init__(self, model: Path, log: Path, port: int, options: tuple[str, ...] = ()) -> None:
        self.model, self.log, self.port, self.options = model, log, port, options
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it takes half a minute until it answers."""
        module = "vllm.entrypoints.openai.api_server"
        command = [os.environ[VARIABLE], "-m", module, "--model", str(self.model), "--port", str(self.port)]
        flags = ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
        ours = ["--enable-scale-out", "--logprobs-mode", "raw_logprobs", *self.options]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command + flags + ours,
                env={**os.environ, **SETTINGS, "PYTHONPATH": ""},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: it has ended, or is not there in time; the message has the end of its log.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process is not None and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"no vLLM server:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """Kill it with all of its processes."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
