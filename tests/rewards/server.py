"""An OpenAI-compatible server on the loopback, whose replies a test scripts and whose requests it can look at."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request: wait, then send a status and a body."""

    content: str = ""
    status: int = 200
    seconds: float = 0.0
    body: str | None = None  # in place of a chat completion with `content`
    drip: float = 0.0  # seconds between single bytes of the body

    @property
    def bytes(self) -> bytes:
        message = {"role": "assistant", "content": self.content}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        return (json.dumps({**whole, "choices": choices}) if self.body is None else self.body).encode()


@dataclass
class JudgeServer:
    """Replies as `script(case)` says; keeps what it was asked and how many requests it held at once."""

    script: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> JudgeServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.answer(self, body)

            def log_message(self, *words: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.http = Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            reply = self.script(json.loads(body["messages"][-1]["content"]))
            time.sleep(reply.seconds)
            handler.send_response(reply.status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(reply.bytes)))
            handler.end_headers()
            pieces = [reply.bytes[at : at + 1] for at in range(len(reply.bytes))] if reply.drip else [reply.bytes]
            for piece in pieces:
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(reply.drip)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self.lock:
                self.now -= 1


def strict(case: dict[str, Any]) -> Reply:
    """A judge that wants the very words of the reference."""
    right = case["answer_to_grade"] == case["reference_answer"]
    return Reply(json.dumps({"score": 1.0 if right else 0.0}))
