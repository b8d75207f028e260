"""Servers that complete prompts: requests to them, and a pool that goes on while one of them is away.

What a server is asked is up to its kind (`ServerKind`): `vllm_server.py` and `sglang.py`. The rule of the pool is that
a result counts only if the server had the current weights before and after it: a server that was restarted in between,
or that another process has given other weights, has another session.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from vlm_grpo.records import JsonObject
from vlm_grpo.redact import redact_text
from vlm_grpo.web import HEADERS, Limits, fetch_bytes

logger = logging.getLogger(__name__)

LARGEST_RESPONSE = 2**34  # bytes
SHORT = 10.0  # seconds for a request that needs no computation
FIRST_PAUSE, MAX_PAUSE = 0.25, 15.0  # seconds until a server is tried again, doubled each time
PASSING_STATUSES = (408, 429)  # beside 5xx: the same request may succeed later
NOT_IMPLEMENTED = 501

Item = TypeVar("Item")
Result = TypeVar("Result")


class ServerUnavailableError(RuntimeError):
    """A server does not answer, or has a failure that may pass."""


class ServerRefusalError(ValueError):
    """A server does not accept a request; sending it again changes nothing."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerClient:
    """Sends requests to one server.

    Args:
        url: such as http://node1:8000.
        seconds: that a request may take in all.
        api_key: that the server wants, if any.
    """

    def __init__(self, url: str, *, seconds: float, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL of a server must be like http://node1:8000, got {redact_text(url)!r}")
        self.url, self.seconds = url.rstrip("/"), seconds
        self.name = redact_text(self.url)
        self.headers = {**HEADERS, **({} if api_key is None else {"Authorization": f"Bearer {api_key}"})}

    def get(self, path: str, *, key: str, seconds: float = SHORT) -> Any:
        """Return the value of this key in the JSON object at a path."""
        return self._value(path, self._request(path, None, seconds), key)

    def post(self, path: str, body: JsonObject | None = None, *, key: str | None = None) -> Any:
        """Send a JSON object, and return the one that comes back, or the value of a key; without content it is empty.

        Raises:
            ServerUnavailableError: there is no complete answer in time, or the server has a failure.
            ServerRefusalError: the server does not accept the request.
        """
        answer = self._request(path, {} if body is None else body, self.seconds)
        return answer if key is None else self._value(path, answer, key)

    def post_for_text(self, path: str, body: JsonObject) -> str:
        """Send a JSON object, and return the text that comes back."""
        return self._content(path, body, self.seconds).decode(errors="replace")

    def _value(self, path: str, answer: JsonObject, key: str) -> Any:
        if key not in answer:  # an answer that ends too early is empty
            raise ServerUnavailableError(f"{self.name}{path}: expected an answer with {key!r}, got {answer!s:.200}")
        return answer[key]

    def has_endpoint(self, path: str) -> bool:
        """Return whether the server knows a path that is posted to: a GET of it is another error than not found."""
        try:
            self._request(path, None, SHORT)
        except ServerRefusalError as error:
            return error.status != http.client.NOT_FOUND
        return True

    def _request(self, path: str, body: JsonObject | None, seconds: float) -> JsonObject:
        content = self._content(path, body, seconds)
        try:
            return json.loads(content) if content.strip() else {}
        except json.JSONDecodeError as error:
            raise ServerUnavailableError(f"{self.name}{path}: expected JSON, got {content[:200]!r}") from error

    def _content(self, path: str, body: JsonObject | None, seconds: float) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.headers, **({} if data is None else {"Content-Type": "application/json"})}
        limits = Limits(size=LARGEST_RESPONSE, seconds=seconds, private=True)
        try:
            return fetch_bytes(urllib.request.Request(self.url + path, data, headers), limits)
        except urllib.error.HTTPError as error:
            raise self._status_error(path, error) from None
        except TimeoutError as error:
            raise ServerUnavailableError(f"{self.name}{path}: no answer within {limits.seconds:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = str(reason) or type(reason).__name__
            raise ServerUnavailableError(f"{self.name}{path}: {text}") from error

    def _status_error(self, path: str, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                text = error.read(2000).decode(errors="replace")
            except (OSError, http.client.HTTPException):
                text = "no text"
        message = f"{self.name}{path}: status {error.code}: {redact_text(text)}"
        is_passing = error.code in PASSING_STATUSES or (error.code >= 500 and error.code != NOT_IMPLEMENTED)
        return ServerUnavailableError(message) if is_passing else ServerRefusalError(message, error.code)


class Weights(NamedTuple):
    """Weights that servers should have: their name, which no other run and no other update has, and their folder.

    Without a folder they were sent to the servers in another way, and cannot be given to a server again.
    """

    name: str
    folder: Path | None

    def new_session(self) -> str:
        """Return a name for one loading of them."""
        return f"{self.name}/{uuid.uuid4().hex[:12]}"

    def are_of(self, session: str) -> bool:
        """Return whether a server with this session has them."""
        return session.rpartition("/")[0] == self.name


class ServerKind(Protocol):
    """What a kind of server is asked for its set-up and its weights."""

    @property
    def start_command(self) -> str:
        """Return a command line that starts such a server for the run."""
        ...

    def check(self, client: ServerClient) -> None:
        """Check the server's version, flags and model.

        Raises:
            ValueError: the run cannot use it; the message holds the command line that starts one.
            ServerUnavailableError: it cannot be asked now.
        """
        ...

    def session(self, client: ServerClient) -> str:
        """Return the session that `load` has set; another text if the server was started since then."""
        ...

    def load(self, client: ServerClient, folder: Path, session: str) -> None:
        """Let the server load weights, forget what it has computed with the former ones, and set its session."""
        ...


@dataclass
class Server:
    """A server as the pool sees it.

    Attributes:
        client: sends requests to it.
        session: of the loading of its weights; None while it is not known to have the current ones.
        is_checked: whether its version and flags were checked since it was started.
        is_in_preparation: whether a thread is about to make it ready.
        num_requests: that are under way.
        failing_since: time of the first failure in a row; None if the last request succeeded.
        failure: the last one.
        pause, next_try: seconds until it is tried again after the next failure, and the time of the next try.
    """

    client: ServerClient
    session: str | None = None
    is_checked: bool = False
    is_in_preparation: bool = False
    num_requests: int = 0
    failing_since: float | None = None
    failure: str = ""
    pause: float = FIRST_PAUSE
    next_try: float = 0.0

    def release(self) -> None:
        """Count one request less."""
        self.num_requests -= 1

    def end_preparation(self) -> None:
        """Let another thread make it ready, should it still not be."""
        self.is_in_preparation = False

    def fail(self, error: Exception) -> None:
        """Note a failure; the server has to be made ready again."""
        now = time.monotonic()
        if self.failing_since is None:
            logger.warning("a server failed, and is tried again: %s", error)
            self.failing_since = now
        self.session, self.is_checked, self.failure = None, False, str(error)
        self.next_try, self.pause = now + self.pause, min(2 * self.pause, MAX_PAUSE)

    def succeed(self) -> None:
        """Note that the server is well."""
        self.failing_since, self.pause, self.next_try = None, FIRST_PAUSE, 0.0


class ServerPool:
    """Distributes requests over servers, and goes on with the others while one is away.

    Every process of a run has its own pool with the same servers.

    Args:
        clients: of the servers.
        kind: what they are.
        wait_seconds: that a server may be away before the run stops.
        concurrency: requests of this process to one server at a time.
        keeps_weights: whether the servers' own weights are meant, and none are sent.
    """

    def __init__(
        self,
        clients: Sequence[ServerClient],
        kind: ServerKind,
        *,
        wait_seconds: float,
        concurrency: int,
        keeps_weights: bool = False,
    ) -> None:
        if not clients:
            raise ValueError("generation by servers needs the URL of at least one: --rollout_url http://node1:8000")
        self.servers, self.kind = [Server(client) for client in clients], kind
        self.wait_seconds, self.concurrency = wait_seconds, concurrency
        self.weights: Weights | None = None
        self.keeps_weights = keeps_weights
        self._changed = threading.Condition()

    def check(self) -> None:
        """Wait until every server is there, and check it.

        Raises:
            ValueError: a server has not the version, flags or model that the run needs.
            TimeoutError: a server is not there in time.
        """
        for server in self.servers:
            while not server.is_checked:
                self._try(server, self._check_server)
                self._raise_if_away([server])
                time.sleep(max(0.0, server.next_try - time.monotonic()))

    def set_weights(self, weights: Weights) -> None:
        """Let the servers have other weights from now on. Nothing may be under way in any process."""
        self.weights = weights
        for server in self.servers:
            server.session = None

    def load_weights(self) -> None:
        """Let the servers load the current weights; those that are away do it when they are back.

        Raises:
            TimeoutError: no server could load them in time.
        """
        with ThreadPoolExecutor(len(self.servers)) as executor:
            while True:
                list(executor.map(lambda server: self._try(server, self._prepare), self.servers))
                if any(server.session is not None for server in self.servers):
                    return
                self._raise_if_away(self.servers)
                time.sleep(max(0.0, min(server.next_try for server in self.servers) - time.monotonic()))

    def map(self, function: Callable[[ServerClient, Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return a function's result for each item, in order; every result is of the current weights.

        Args:
            function: sends an item to a server. It is called again, perhaps with another server, where one fails.
            items: of which there may be many.

        Raises:
            TimeoutError: no server is there within the limit, or one item fails for so long.
            ValueError: there are no weights yet, or a server refuses an item or was restarted with wrong flags.
        """
        if self.weights is None and not self.keeps_weights:
            raise ValueError("servers have no weights of this run yet: update_weights comes before generate")
        if not items:
            return []
        stop = threading.Event()
        for server in self.servers:
            server.session = None  # the server may have been restarted since the last call
        with ThreadPoolExecutor(min(len(items), self.concurrency * len(self.servers))) as executor:
            futures = [executor.submit(self._result, function, item, stop) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                for future in futures:
                    future.cancel()
                with self._changed:
                    self._changed.notify_all()
        return _results(futures)

    def _result(self, function: Callable[[ServerClient, Item], Result], item: Item, stop: threading.Event) -> Result:
        failing_since: float | None = None
        while True:
            server, session = self._acquire(stop)
            try:
                result = function(server.client, item)
                if self.kind.session(server.client) != session:
                    raise ServerUnavailableError(f"{server.client.name} was restarted, or was given other weights")
                return result
            except ServerUnavailableError as error:
                failing_since = failing_since or time.monotonic()
                self._note_failure(server, session, error)
                if time.monotonic() - failing_since > self.wait_seconds:
                    raise self._away_error(
                        [server], f"failed a request for more than {self.wait_seconds:g} s"
                    ) from error
            finally:
                with self._changed:
                    server.release()
                    self._changed.notify_all()

    def _note_failure(self, server: Server, session: str, error: Exception) -> None:
        with self._changed:
            if server.session == session:  # else another request has noticed it before
                server.fail(error)

    def _acquire(self, stop: threading.Event) -> tuple[Server, str]:
        """Return a server with the current weights, and its session; wait for one, and make servers ready meanwhile."""
        while True:
            with self._changed:
                if stop.is_set():
                    raise CancelledError
                server = self._next_to_prepare()
                if server is None:
                    ready = self._next_ready()
                    if ready is not None:
                        return ready
                    self._raise_if_away(self.servers)
                    self._changed.wait(self._seconds_to_wait())
                    continue
                server.is_in_preparation = True
            self._try(server, self._prepare)

    def _next_to_prepare(self) -> Server | None:
        now = time.monotonic()
        waiting = [each for each in self.servers if each.session is None and not each.is_in_preparation]
        return next((each for each in waiting if each.next_try <= now), None)

    def _next_ready(self) -> tuple[Server, str] | None:
        free = [each for each in self.servers if each.session is not None and each.num_requests < self.concurrency]
        if not free:
            return None
        server = min(free, key=lambda each: each.num_requests)
        self.servers.sort(key=lambda each: each is server)  # the last one in turn
        server.num_requests += 1
        return server, server.session or ""

    def _seconds_to_wait(self) -> float:
        tries = [each.next_try for each in self.servers if each.session is None and not each.is_in_preparation]
        return max(0.01, min([1.0, *(each - time.monotonic() for each in tries)]))

    def _try(self, server: Server, action: Callable[[Server], None]) -> None:
        """Do something with a server, and note whether it is well."""
        try:
            action(server)
        except ServerUnavailableError as error:
            with self._changed:
                server.fail(error)
        else:
            with self._changed:
                server.succeed()
        finally:
            with self._changed:
                server.end_preparation()
                self._changed.notify_all()

    def _check_server(self, server: Server) -> None:
        self.kind.check(server.client)
        server.is_checked = True

    def _prepare(self, server: Server) -> None:
        """Check a server, and let it load the current weights unless it has them."""
        if not server.is_checked:
            self._check_server(server)
        server.session = self._session_with_weights(server)

    def _session_with_weights(self, server: Server) -> str:
        session = self.kind.session(server.client)
        if self.weights is None:
            if "/" in session:
                raise ValueError(
                    f"{server.client.name} has weights of a training, {session!r}, and not those of its model: start "
                    f"it again: {self.kind.start_command}"
                )
            return session
        if self.weights.are_of(session):
            return session
        if self.weights.folder is None:
            raise ValueError(
                f"{server.client.name} has lost the weights, as after a restart: expected {self.weights.name}, got "
                f"{session!r}. They were sent over NCCL, so it cannot be given them again; resume the run from its "
                "last checkpoint, or send weights as files"
            )
        with _only_one(self.weights.folder / f"loading-{_file_name(server.client.url)}", self.wait_seconds):
            session = self.kind.session(server.client)  # another process may have been first
            if not self.weights.are_of(session):
                session = self.weights.new_session()
                started = time.monotonic()
                self.kind.load(server.client, self.weights.folder, session)
                logger.info("%s loaded %s in %.1f s", server.client.name, session, time.monotonic() - started)
        return session

    def _raise_if_away(self, servers: Sequence[Server]) -> None:
        now = time.monotonic()
        failing = [each.failing_since for each in servers if each.session is None]
        if len(failing) == len(servers) and all(each and now - each > self.wait_seconds for each in failing):
            raise self._away_error(servers, f"not available within {self.wait_seconds:g} s")

    def _away_error(self, servers: Sequence[Server], what: str) -> TimeoutError:
        now = time.monotonic()
        lines = [
            f"  {each.client.name}: failing for {now - (each.failing_since or now):.0f} s, last: {each.failure}"
            for each in servers
        ]
        return TimeoutError(
            "\n".join(
                [f"rollout server {what}:", *lines, f"Look at its log and start it again: {self.kind.start_command}"]
            )
        )


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    """Return the results; of several errors the first that is not of the interruption is raised."""
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, CancelledError):
            raise error
    return [future.result() for future in futures]


def _file_name(url: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in urlsplit(url).netloc.rpartition("@")[2])


@contextmanager
def _only_one(path: Path, seconds: float) -> Iterator[None]:
    """Hold a file that one process at a time can have, on this machine or another that sees the folder.

    Raises:
        ServerUnavailableError: another process holds it for too long.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if time.monotonic() > end:
                raise ServerUnavailableError(f"another process has held {path} for {seconds:g} s") from None
            time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
