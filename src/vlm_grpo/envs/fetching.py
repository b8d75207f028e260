"""One request to a service on the web: limits of time, size and pace, and failures in words of this package.

What a server says of a failure is not shown: it could repeat the key that it was sent.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from vlm_grpo.web import HEADERS, Limits, TooLargeError, fetch_bytes

LARGEST = 4 * 2**20  # bytes of a reply


@dataclass(frozen=True)
class Request:
    """What is sent: a GET without a body, a POST of JSON with one."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Mapping[str, Any] | None = None


class Failure(Exception):
    """Why a request had no result: whether it may have one later, and the seconds that the service asks to wait."""

    def __init__(self, reason: str, *, may_pass: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait = wait


class Pace:
    """Lets requests begin one after the other, so many in a second."""

    def __init__(self, rate: float) -> None:
        self.step = 1 / rate
        self.lock = threading.Lock()
        self.next = 0.0

    def wait(self, end: float) -> bool:
        """Sleep until it is one's turn; False, at once, when that would be after `end`."""
        with self.lock:
            turn = max(self.next, time.monotonic())
            if turn >= end:
                return False
            self.next = turn + self.step
        time.sleep(max(0.0, turn - time.monotonic()))
        return True

    def hold(self, seconds: float) -> None:
        """Nobody begins for so long."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


def reply(request: Request, end: float) -> bytes:
    """The body of the answer to a request, if it is there by `end` (as time.monotonic counts).

    Raises:
        Failure: it is not.
    """
    headers = {**HEADERS, "Accept": "application/json", **request.headers}
    data = None
    if request.body is not None:
        data = json.dumps(request.body).encode()
        headers["Content-Type"] = "application/json"
    sent = urllib.request.Request(request.url, data, headers)
    # Redirects are failures: the key would go with them, to whatever server.
    limits = Limits(LARGEST, max(0.01, end - time.monotonic()), redirects=0, private=True)
    try:
        return fetch_bytes(sent, limits)
    except urllib.error.HTTPError as error:
        with error:
            raise _status(error) from None
    except TooLargeError:
        raise Failure(f"an answer of over {LARGEST // 2**20} MiB", may_pass=False) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Failure("no answer in time") from None
        raise Failure(f"no connection ({type(reason).__name__})") from None


def _status(error: urllib.error.HTTPError) -> Failure:
    try:
        phrase = f" ({HTTPStatus(error.code).phrase})"
    except ValueError:
        phrase = ""
    may_pass = error.code == 429 or error.code >= 500
    wait = _seconds(error.headers.get("Retry-After", "").strip()) if may_pass else None
    return Failure(f"status {error.code}{phrase}", may_pass=may_pass, wait=wait)


def _seconds(retry_after: str) -> float | None:
    """The time that a Retry-After header names, a number of seconds or a date; None for anything else."""
    if re.fullmatch(r"\d{1,6}", retry_after):
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
