"""A loopback server that answers as SGLang 0.5.23 does, as far as the engine asks. Runs as a script, with no packages.

    python tests/support/fake_sglang.py [--classes]

With --classes every request has to pass SGLang's own request classes, so that the interpreter needs sglang. Without,
it may have none but the fields below, which are theirs. It prints its port. Its model is one number, as in fake_vllm.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BASE_WEIGHT, STOP, IMAGE = 99, 2, 6
FIELDS = {
    "/generate": {
        "input_ids", "image_data", "mm_hashes", "mm_processor_kwargs", "sampling_params", "return_logprob",
        "return_prompt_token_ids", "stream",
    },
    "sampling_params": {
        "max_new_tokens", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n",
        "regex", "no_stop_trim", "skip_special_tokens", "logit_bias",
    },
    "/update_weights_from_disk": {"model_path", "weight_version", "flush_cache"},
    "/update_weight_version": {"new_version"},
}  # fmt: skip


def check_fields(path: str, body: dict[str, Any]) -> None:
    """Raise ValueError for a field that SGLang does not know."""
    parts = [(path, body), *([("sampling_params", body["sampling_params"])] if path == "/generate" else [])]
    for name, values in parts:
        if unknown := values.keys() - FIELDS[name]:
            raise ValueError(f"{name}: unknown fields {sorted(unknown)}")


def check_by_classes(path: str, body: dict[str, Any]) -> None:
    """Raise an error where SGLang's own classes do: they are what its endpoints take."""
    from pydantic import TypeAdapter
    from sglang.srt.managers import io_struct
    from sglang.srt.sampling.sampling_params import SamplingParams

    if path == "/generate":
        request = TypeAdapter(io_struct.GenerateReqInput).validate_python(body)
        request.normalize_batch_and_arguments()
        known = set(io_struct.GenerateReqInput.__dataclass_fields__)
        if unknown := body.keys() - known:
            raise ValueError(f"GenerateReqInput has no {sorted(unknown)}")
        SamplingParams(**body["sampling_params"]).verify(vocab_size=1000)
        return
    kind = {
        "/update_weights_from_disk": io_struct.UpdateWeightFromDiskReqInput,
        "/update_weight_version": io_struct.UpdateWeightVersionReqInput,
    }[path]
    if unknown := body.keys() - set(kind.__struct_fields__):
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}")
    TypeAdapter(kind).validate_python(body)


def read_weight(folder: Path) -> int:
    """Return the number in the tensor "weight" of safetensors files."""
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        start, end = json.loads(data[8 : 8 + length])["weight"]["data_offsets"]
        return int.from_bytes(data[8 + length + start : 8 + length + end], "little")
    raise FileNotFoundError(f"no weights in {folder}")


def image_tokens(url: str) -> int:
    """Return one token for each 28 x 28 pixels of a PNG file."""
    width, height = struct.unpack(">II", base64.b64decode(url.partition(",")[2])[16:24])
    return width * height // 784


class Model:
    """What a server process holds."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.tokens_more = 0
        self.restart()

    def restart(self) -> None:
        self.weight, self.version = BASE_WEIGHT, "default"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in FIELDS:
            self.requests.append([path, body])
            try:
                CHECK(path, body)
            except Exception as error:
                return 422, {"detail": f"{type(error).__name__}: {error}"}
        handlers = {
            "/server_info": lambda body: (200, {"version": "0.5.23"}),
            "/model_info": lambda body: (200, {"tokenizer_path": "x/tiny", "weight_version": self.version}),
            "/v1/models": lambda body: (200, {"data": [{"id": "tiny", "max_model_len": 1000}]}),
            "/update_weight_version": self.update_version,
            "/update_weights_from_disk": self.load,
            "/generate": lambda body: (200, self.generate(body)),
            "/fake/restart": lambda body: (200, self.restart() or {}),
            "/fake/requests": lambda body: (200, {"requests": self.requests}),
            "/fake/tokens_more": lambda body: (200, setattr(self, "tokens_more", 1) or {}),
        }
        return handlers[path](body) if path in handlers else (404, {"detail": "Not Found"})

    def update_version(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.version = body["new_version"]
        return 200, {"success": True, "new_version": self.version}

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        try:
            self.weight, self.version = read_weight(Path(body["model_path"])), body["weight_version"]
        except OSError as error:
            return 400, {"success": False, "message": str(error), "num_paused_requests": 0}
        return 200, {"success": True, "message": "Succeeded", "num_paused_requests": 0}

    def generate(self, body: dict[str, Any]) -> Any:
        counts = iter([image_tokens(url) + self.tokens_more for url in body.get("image_data", ())])
        seen = [each for token in body["input_ids"] for each in [token] * (next(counts) if token == IMAGE else 1)]
        choices = [self.choice(index, seen) for index in range(body["sampling_params"]["n"])]
        return choices if len(choices) > 1 else choices[0]

    def choice(self, index: int, seen: list[int]) -> dict[str, Any]:
        tokens = [[-0.5, self.weight, None], [-0.25, index, None], [-0.125, STOP, None]]
        info = {"finish_reason": {"type": "stop", "matched": STOP}, "weight_version": self.version}
        return {"text": "", "prompt_token_ids": seen, "meta_info": {**info, "output_token_logprobs": tokens}}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body: dict[str, Any]) -> None:
        status, content = MODEL.answer(self.path, body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    CHECK = check_by_classes if "--classes" in sys.argv else check_fields
    CHECK("/update_weight_version", {"new_version": "x"})  # importing sglang takes half a minute
    MODEL = Model()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
