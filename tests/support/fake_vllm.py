"""A loopback server that answers as vLLM 0.30 does, as far as the engine asks, and misbehaves on demand.

Its model is one number, the tensor "weight" of the files that it has loaded: a completion is that number and a stop
token, so that a test sees which weights a completion is of.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

POSTED = (
    "/collective_rpc",
    "/reset_prefix_cache",
    "/reset_encoder_cache",
    "/update_weight_version",
    "/inference/v1/generate",
    "/v1/chat/completions/render",
    "/v1/load_lora_adapter",
)
BASE_WEIGHT = 99  # after a start, before any loading
STOP = 2
GENERATE, RENDER, LOAD_ADAPTER = POSTED[4:]
NOT_FOUND = {"detail": "Not Found"}


class ClosedError(Exception):
    """The connection is closed without an answer."""


@dataclass
class FakeVLLM:
    """A server on this machine; `start` makes it answer, `stop` refuse connections, `restart` forget its weights.

    Attributes:
        before: called with the path of each request; it may wait, raise `ClosedError`, or return a status to answer.
        requests: bodies of all requests, by path.
        expand: from the (width, height) of an image to the tokens that it becomes.
        image_token: one of an image's features.
    """

    model: str = "tiny"
    version: str = "0.30.0"
    logprobs_mode: str = "raw_logprobs"
    max_model_len: int = 1000
    device: str = "cuda"
    lora_config: dict[str, int] | None = None
    missing: tuple[str, ...] = ()
    before: Callable[[str], int | None] = lambda path: None
    expand: Callable[[tuple[int, int]], list[int]] = lambda size: []
    image_token: int = 6
    finish_reason: str = "stop"
    sees_folders: bool = True
    requests: dict[str, list[Any]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    weight: int = BASE_WEIGHT
    weight_version: str = "default"
    adapter: tuple[str | None, int] = (None, 0)
    port: int = 0

    def start(self) -> FakeVLLM:
        self.restart()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def restart(self) -> None:
        """Forget the weights, as a process does that is started again; no connection fails."""
        self.weight, self.weight_version, self.adapter = BASE_WEIGHT, "default", ("none", 0)

    def bodies(self, path: str) -> list[Any]:
        return self.requests.get(path, [])

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the content that a request is answered with."""
        self.requests.setdefault(path, []).append(body)
        plain = path.partition("?")[0]
        status = self.before(plain)
        if status is not None:
            return status, {"error": {"message": f"made to answer {status}"}}
        if plain in self.missing:
            return 404, NOT_FOUND
        if body is None and plain in POSTED:
            return 405, {"detail": "Method Not Allowed"}
        if plain == "/collective_rpc" and not self.sees_folders:
            return 500, {"error": {"message": "Repo id must be in the form 'repo_name'"}}
        handlers = {
            "/version": lambda: {"version": self.version},
            "/weight_info": lambda: {"weight_version": self.weight_version},
            "/server_info": self._server_info,
            "/v1/models": lambda: {"data": self._models()},
            "/collective_rpc": lambda: self._load(body),
            "/reset_prefix_cache": lambda: {"success": True},
            "/reset_encoder_cache": lambda: None,
            "/update_weight_version": lambda: setattr(self, "weight_version", body["new_version"]) or {"success": True},
            GENERATE: lambda: self._generate(body),
            RENDER: lambda: self._render(body),
            LOAD_ADAPTER: lambda: self._load_adapter(body),
        }
        return (200, handlers[plain]()) if plain in handlers else (404, NOT_FOUND)

    def _server_info(self) -> dict[str, Any]:
        model = {"logprobs_mode": self.logprobs_mode, "dtype": "torch.bfloat16"}
        return {
            "vllm_config": {
                "model_config": model,
                "device_config": {"device": self.device},
                "lora_config": self.lora_config,
            }
        }

    def _load(self, body: Any) -> dict[str, Any]:
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        assert json.loads((folder / "config.json").read_text())["model_type"]
        self.weight = int(tensors["weight"])
        self.loads.append(folder.name)
        return {"results": [None]}

    def _models(self) -> list[dict[str, Any]]:
        model = {"id": self.model, "root": self.model, "max_model_len": self.max_model_len}
        adapter = {"id": self.adapter[0], "root": "/a/folder", "parent": self.model, "max_model_len": None}
        return [model, *([adapter] if self.adapter[1] else [])]

    def _load_adapter(self, body: Any) -> str:
        """Take the number from the adapter; it is that of requests for this model alone."""
        folder = Path(body["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA" and body["load_inplace"]
        tensors = load_file(folder / "adapter_model.safetensors")
        number = next(value for name, value in tensors.items() if "lora_A" in name).flatten()[0]
        self.adapter = body["lora_name"], int(number)
        self.loads.append(folder.name)
        return "Success: LoRA adapter added successfully."

    def _generate(self, body: Any) -> dict[str, Any]:
        name, number = self.adapter
        ids = [number if body.get("model") == name else self.weight, STOP]
        content = [{"logprob": -0.5}, {"logprob": -9999.0}]
        choices = [
            {"index": index, "token_ids": [*ids[:-1], index, STOP], "finish_reason": self.finish_reason}
            | {"logprobs": {"content": [content[0], *content]}}
            for index in range(body["sampling_params"]["n"])
        ]
        seen = body["token_ids"]
        for part in body.get("content_parts", ()):
            at = seen.index(self.image_token)
            seen = [*seen[:at], *(-token for token in self.expand(_size(part["url"]))), *seen[at + 1 :]]
        return {"choices": choices[::-1], "prompt_token_ids": [abs(token) for token in seen]}

    def _render(self, body: Any) -> dict[str, Any]:
        (block,) = body["messages"][0]["content"]
        ids = self.expand(_size(block["image_url"]["url"]))
        features = {
            "mm_hashes": {"image": [str(hash(block["image_url"]["url"]))]},
            "mm_placeholders": {"image": [{"offset": 2, "length": len(ids)}]},
            "kwargs_data": {"image": ["tensors"]},
            "mm_metadata": {"image": [None]},
        }
        return {"token_ids": [1, 9, *ids, 2], "features": features}


def _size(url: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size


def _handler(fake: FakeVLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            try:
                status, content = fake.answer(self.path, body)
            except ClosedError as error:
                self.wfile.write(str(error).encode())
                return
            data = b"" if content is None else json.dumps(content).encode()
            data = content.encode() if isinstance(content, str) else data
            with suppress(ConnectionError):  # the client waits no longer
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def wait_until(claim: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return when a claim holds."""
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.005)
