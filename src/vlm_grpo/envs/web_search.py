"""Web search through Serper, Tavily, Brave, SearXNG, or any server with this package's JSON format.

Failures are ToolErrors for the model; keys are kept out of messages, logs and results. Results are cached in memory
or in a file, so that identical queries of a group need only one request.
Error texts of servers are not shown because they could contain the key.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # a different class before Python 3.11
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPException
from urllib.parse import urlencode, urlsplit

from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.retrieval.bm25 import SearchResult
from vlm_grpo.records import JsonObject
from vlm_grpo.registry import Registry
from vlm_grpo.web import HEADERS, Limits, TooLargeError, fetch_bytes

logger = logging.getLogger(__name__)

PROVIDER, KEY, BASE_URL, CACHE = "SEARCH_PROVIDER", "SEARCH_API_KEY", "SEARCH_BASE_URL", "SEARCH_CACHE"  # environment
MAX_CACHED_QUERIES = 50_000
MAX_RESULT_LENGTH = 10_000  # characters of a result
MIN_KEY_LENGTH = 8  # characters; shorter keys could occur in any text
MAX_QUERY_LENGTH = 400  # characters, the lowest limit of the services
FIRST_PAUSE, MAX_PAUSE = 0.5, 8.0  # seconds before a retry, doubled each time
MAX_REPLY_BYTES = 4 * 2**20
WEB_ADDRESS = re.compile(r"https?://[!-.0-~][!-~]*")
HEADER_FORM = re.compile(r"[!-~]+")  # characters allowed in a header


@dataclass(frozen=True)
class Request:
    """An HTTP request: GET without a body, POST with a JSON body."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: JsonObject | None = None


class RequestFailure(Exception):
    """A failed request: whether a retry may succeed, and the seconds to wait according to the service."""

    def __init__(self, reason: str, *, may_pass: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait = wait


class RateLimiter:
    """Limits the rate at which requests start."""

    def __init__(self, rate: float) -> None:
        self.step = 1 / rate
        self.lock = threading.Lock()
        self.next = 0.0

    def wait(self, end: float) -> bool:
        """Sleep until a request may start; return False immediately if that would be after `end`."""
        with self.lock:
            turn = max(self.next, time.monotonic())
            if turn >= end:
                return False
            self.next = turn + self.step
        time.sleep(max(0.0, turn - time.monotonic()))
        return True

    def hold(self, seconds: float) -> None:
        """Block all requests for some seconds."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


def send_request(request: Request, end: float) -> bytes:
    """Return the body of the response if it arrives by `end` (time.monotonic).

    Raises:
        Failure: it is not.
    """
    headers = {**HEADERS, "Accept": "application/json", **request.headers}
    data = None
    if request.body is not None:
        data = json.dumps(request.body).encode()
        headers["Content-Type"] = "application/json"
    http_request = urllib.request.Request(request.url, data, headers)
    # Redirects are failures because they would send the key to another server.
    limits = Limits(MAX_REPLY_BYTES, max(0.01, end - time.monotonic()), redirects=0, private=True)
    try:
        return fetch_bytes(http_request, limits)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_failure(error) from None
    except TooLargeError:
        raise RequestFailure(f"an answer of over {MAX_REPLY_BYTES // 2**20} MiB", may_pass=False) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise RequestFailure("no answer in time") from None
        raise RequestFailure(f"no connection ({type(reason).__name__})") from None


def _status_failure(error: urllib.error.HTTPError) -> RequestFailure:
    try:
        phrase = f" ({HTTPStatus(error.code).phrase})"
    except ValueError:
        phrase = ""
    may_pass = error.code == 429 or error.code >= 500
    wait = _parse_retry_after(error.headers.get("Retry-After", "").strip()) if may_pass else None
    return RequestFailure(f"status {error.code}{phrase}", may_pass=may_pass, wait=wait)


def _parse_retry_after(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date; None for anything else."""
    if re.fullmatch(r"\d{1,6}", retry_after):
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class Provider:
    """A search service.

    `request(url, key, query, top)` builds the request; `place` is the path of the results in the response; `columns`
    are the names of id, title and passage in each.
    """

    request: Callable[[str, str, str, int], Request]
    place: tuple[str, ...]
    columns: tuple[str, str, str]
    url: str | None = None  # None: the user's own server
    needs_key: bool = True


def _serper(url: str, key: str, query: str, top: int) -> Request:
    return Request(url, {"X-API-KEY": key}, {"q": query, "num": top})


def _tavily(url: str, key: str, query: str, top: int) -> Request:
    return Request(url, {"Authorization": f"Bearer {key}"}, {"query": query, "max_results": top})


def _brave(url: str, key: str, query: str, top: int) -> Request:
    return Request(f"{url}?{urlencode({'q': query, 'count': top})}", {"X-Subscription-Token": key})


def _searxng(url: str, key: str, query: str, top: int) -> Request:
    return Request(f"{url.rstrip('/')}/search?{urlencode({'q': query, 'format': 'json'})}")


def _json(url: str, key: str, query: str, top: int) -> Request:
    return Request(url, {"Authorization": f"Bearer {key}"} if key else {}, {"query": query, "top": top})


PROVIDERS: Registry[Provider] = Registry(
    "search provider",
    {
        "serper": Provider(_serper, ("organic",), ("link", "title", "snippet"), "https://google.serper.dev/search"),
        "tavily": Provider(_tavily, ("results",), ("url", "title", "content"), "https://api.tavily.com/search"),
        "brave": Provider(
            _brave,
            ("web", "results"),
            ("url", "title", "description"),
            "https://api.search.brave.com/res/v1/web/search",
        ),
        "searxng": Provider(_searxng, ("results",), ("url", "title", "content"), needs_key=False),
        # POST {"query": ..., "top": ...} returns {"results": [{"id": ..., "title": ..., "text": ...}]}.
        "json": Provider(_json, ("results",), ("id", "title", "text"), needs_key=False),
    },
)


@dataclass(frozen=True)
class ProviderSettings:
    """Service and request settings. Values of None are read from the environment.

    Args:
        provider: A name in PROVIDERS (SEARCH_PROVIDER).
        base_url: URL of the service, if it has no default or to override it (SEARCH_BASE_URL).
        api_key: API key (SEARCH_API_KEY).
        cache: File that stores results across runs (SEARCH_CACHE); default: in memory.
        timeout: Seconds per request. A query takes at most (retries + 1) times that, including pauses.
        retries: Number of retries after a failed request (connection, time limit, status 429 or 5xx).
        rate: Maximum number of requests per second.
    """

    provider: str | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    cache: str | None = None
    timeout: float = 10.0
    retries: int = 2
    rate: float = 5.0

    def complete(self, environment: Mapping[str, str] | None = None) -> ProviderSettings:
        """Return these settings with the missing ones read from the environment.

        Raises:
            KeyError: the provider is unknown.
            ValueError: something is missing or invalid.
        """
        variables = os.environ if environment is None else environment
        name = self.provider or variables.get(PROVIDER)
        if not name:
            raise ValueError(f"no search provider: set {PROVIDER} to one of {', '.join(PROVIDERS)}")
        url = self.base_url or variables.get(BASE_URL) or PROVIDERS[name].url
        key = (self.api_key or variables.get(KEY) or "").strip()
        if not url or not WEB_ADDRESS.fullmatch(url):
            raise ValueError(f"search provider {name!r}: set {BASE_URL} to its http(s) address")
        if urlsplit(url).username is not None:
            raise ValueError(f"search provider {name!r}: the key belongs in {KEY}, not in {BASE_URL}")
        if PROVIDERS[name].needs_key and not key:
            raise ValueError(f"search provider {name!r}: set {KEY}")
        if key and not HEADER_FORM.fullmatch(key):
            raise ValueError(f"search provider {name!r}: {KEY} holds spaces or characters that are not ASCII")
        for option, least in (("timeout", 0), ("retries", -1), ("rate", 0)):
            if not getattr(self, option) > least:
                raise ValueError(f"search provider: {option} must be more than {least}, got {getattr(self, option)!r}")
        return replace(self, provider=name, base_url=url, api_key=key, cache=self.cache or variables.get(CACHE) or None)


class WebSearch:
    """Results of one service. Identical queries are sent once, also across threads."""

    def __init__(self, settings: ProviderSettings) -> None:
        if settings.provider is None or settings.base_url is None or settings.api_key is None:
            raise ValueError("search provider: settings are missing; ProviderSettings.complete reads them")
        self.settings = settings
        self.provider = PROVIDERS[settings.provider]
        self.base_url, self.api_key = settings.base_url, settings.api_key
        self.place = (
            urlsplit(self.base_url)._replace(query="", fragment="").geturl()
        )  # without parts that may contain a key
        self.cache = _ResultCache(settings.cache)
        self.pace = RateLimiter(settings.rate)
        self.lock = threading.Lock()
        self.in_flight: dict[str, Future[list[SearchResult]]] = {}
        self.has_warned = False

    def search(self, query: str, top: int = 3, characters: int = 500) -> list[SearchResult]:
        """Return the service's best results, each with at most `characters` characters.

        Raises:
            ToolError: there was no valid response in time.
        """
        query = " ".join(query.encode("utf-8", "ignore").decode().split())[:MAX_QUERY_LENGTH]
        end = time.monotonic() + self.settings.timeout * (self.settings.retries + 1)
        if not query:
            raise ToolError("the query is empty")
        name = json.dumps([self.settings.provider, self.place, query, top])
        results = self.cache.get(name)
        if results is None:
            results = self._shared(name, query, top, end)
        return [result._replace(passage=truncate(result.passage, characters)) for result in results[:top]]

    def _shared(self, name: str, query: str, top: int, end: float) -> list[SearchResult]:
        """Return the results of a request, shared with an identical one in flight."""
        with self.lock:
            others = self.in_flight.get(name)
            future = self.in_flight.setdefault(name, Future())
        if others is not None:
            try:
                return others.result(max(0.0, end - time.monotonic()))
            except FutureTimeout:
                raise ToolError("the search took too long") from None
        try:
            results = self._ask(query, top, end)
            self.cache.put(name, results)
            future.set_result(results)
            return results
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self.lock:
                del self.in_flight[name]

    def _ask(self, query: str, top: int, end: float) -> list[SearchResult]:
        """Return the results, retrying as often as allowed.

        Raises:
            ToolError: all attempts failed; the message describes the last one.
        """
        request = self.provider.request(self.base_url, self.api_key, query, top)
        last = RequestFailure("too many searches at the same time; try again later")
        for attempt in range(self.settings.retries + 1):
            if not self.pace.wait(end):
                break
            try:
                results = self._results(send_request(request, min(end, time.monotonic() + self.settings.timeout)))
                self.has_warned = False
                return results
            except RequestFailure as failure:
                last = failure
            if last.wait is not None:
                self.pace.hold(last.wait)  # for all threads: the service is overloaded
            elif last.may_pass and attempt < self.settings.retries:
                pause = min(MAX_PAUSE, FIRST_PAUSE * 2**attempt)
                time.sleep(max(0.0, min(pause, end - time.monotonic())))
            if not last.may_pass:
                break
        if not self.has_warned:
            self.has_warned = True
            where = f"{self.settings.provider} at {self.place}"
            logger.warning(
                "search provider %s: %s; the model gets an error; this is logged once until it recovers", where, last
            )
        raise ToolError(f"the search failed: {last}")

    def _results(self, body: bytes) -> list[SearchResult]:
        try:
            items = json.loads(body)
            for name in self.provider.place:
                items = items.get(name) or {}  # services omit empty fields
            return [self._result(item) for item in items]
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise RequestFailure("an answer that cannot be read", may_pass=False) from None

    def _result(self, item: JsonObject) -> SearchResult:
        values = [item.get(column) for column in self.provider.columns]
        texts = ["" if value is None else str(value)[:MAX_RESULT_LENGTH] for value in values]
        if len(self.api_key) >= MIN_KEY_LENGTH:  # the response may contain the key
            texts = [text.replace(self.api_key, "[key]") for text in texts]
        score = item.get("score")
        link, title, passage = texts
        return SearchResult(link, title, passage, float(score) if isinstance(score, int | float) else None)


class _ResultCache:
    """Results by query, in a file or in memory; a file that fails is ignored."""

    def __init__(self, path: str | None) -> None:
        self.lock = threading.Lock()
        try:
            self.base = sqlite3.connect(path or ":memory:", timeout=1, check_same_thread=False, isolation_level=None)
            self.base.execute("CREATE TABLE IF NOT EXISTS found (name TEXT UNIQUE, results TEXT)")
        except sqlite3.Error as error:
            raise ValueError(
                f"{CACHE} {path}: cannot be used as a cache of results: {error}; choose another file"
            ) from error

    def get(self, name: str) -> list[SearchResult] | None:
        row = self._do("SELECT results FROM found WHERE name = ?", name)
        return [SearchResult(*values) for values in json.loads(row[0])] if row else None

    def put(self, name: str, results: list[SearchResult]) -> None:
        self._do("INSERT OR REPLACE INTO found VALUES (?, ?)", name, json.dumps(results))
        self._do("DELETE FROM found WHERE rowid <= (SELECT max(rowid) FROM found) - ?", MAX_CACHED_QUERIES)

    def _do(self, sql: str, *values: object) -> tuple[str, ...] | None:
        try:
            with self.lock:
                return self.base.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            logger.warning("cache of search results: %s", error)
            return None


def truncate(text: str, characters: int) -> str:
    """Return the beginning of a text on one line, with dots if it was truncated."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 4].rstrip()} ..."


@lru_cache(maxsize=8)
def web_search(settings: ProviderSettings) -> WebSearch:
    """Return the service with these settings, one per process: all episodes share its rate limit and cache."""
    return WebSearch(settings)
