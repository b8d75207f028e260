"""A search service on the loopback, whose replies a test scripts and whose requests it can look at."""

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
    """What the service does with one request: wait, then send a status, headers and a body."""

    body: Any = None  # JSON, or bytes that are sent as they are
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drip: float = 0.0  # seconds between single bytes of the body

    @property
    def bytes(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any
    at: float


@dataclass
class Service:
    """Replies as `script(number)` says, `number` counting the requests from 0."""

    script: Callable[[int], Reply]
    asked: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Service:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.answer(self)

            do_POST = do_GET

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
        return f"http://127.0.0.1:{self.http.server_port}/find"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            number = len(self.asked)
            self.asked.append(Asked(handler.path, headers, json.loads(body) if body else None, time.monotonic()))
        reply = self.script(number)
        time.sleep(reply.seconds)
        try:
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.bytes)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            for at in range(len(reply.bytes)) if reply.drip else ():
                handler.wfile.write(reply.bytes[at : at + 1])
                time.sleep(reply.drip)
            if not reply.drip:
                handler.wfile.write(reply.bytes)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
