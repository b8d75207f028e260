"""A small OpenAI-compatible HTTP server for tests: it remembers requests and answers from a function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Reply(Exception):
    """Raised by an answer function: an HTTP status instead of a completion."""

    def __init__(self, status: int) -> None:
        self.status = status


@contextmanager
def serving(answer: Callable[[dict[str, Any]], str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a running server, and the requests that it gets (body and headers)."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "path": self.path, "key": self.headers["Authorization"]})
            try:
                text, status = answer(body), 200
            except Reply as error:
                text, status = "", error.status
            finish = "length" if text.endswith("...") else "stop"
            choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 1, "completion_tokens": len(text.split()), "total_tokens": 1}
            reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            good = {**reply, "choices": [choice], "usage": usage}
            payload = json.dumps(good if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
