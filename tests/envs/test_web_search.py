from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.envs.web import Reply, Service
from vlm_grpo.envs.environment import ToolError
from vlm_grpo.envs.retrieval.bm25 import SearchResult
from vlm_grpo.envs.web_search import MAX_REPLY_BYTES, PROVIDERS, ProviderSettings, WebSearch

KEY = "secret-key-1234"
GOOD = {"results": [{"id": "1", "title": "Boats", "text": "red", "score": 0.5}, {"id": "2", "title": "Cars"}]}
FOUND = [SearchResult("1", "Boats", "red", 0.5), SearchResult("2", "Cars", "", None)]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Starts a service of these replies, the last one again and again."""
    services = []

    def start(*replies: Reply) -> Service:
        services.append(Service(lambda number: replies[min(number, len(replies) - 1)]).__enter__())
        return services[-1]

    yield start
    for service in services:
        service.__exit__()


def search_of(url: str, **settings: Any) -> WebSearch:
    given = {"provider": "json", "base_url": url, "api_key": KEY, "timeout": 5.0, "rate": 1000.0, **settings}
    return WebSearch(ProviderSettings(**given).complete({}))


def failure(search: WebSearch, query: str = "boats") -> str:
    with pytest.raises(ToolError) as error:
        search.search(query)
    assert KEY not in str(error.value)
    return str(error.value)


def test_results_come_back(serve: Callable[..., Service]):
    service = serve(Reply(GOOD))
    search = search_of(service.url)
    assert search.search("red\n boats ", 2) == FOUND
    assert search.search("red boats", 1) == FOUND[:1]
    asked = service.asked[0]
    assert asked.body == {"query": "red boats", "top": 2}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


PLACES = {  # what each service is sent, and where its results are
    "serper": ("x-api-key", KEY, {"q": "a b&c", "num": 3}, "", ("organic", "link", "snippet")),
    "tavily": (
        "authorization",
        f"Bearer {KEY}",
        {"query": "a b&c", "max_results": 3},
        "",
        ("results", "url", "content"),
    ),
    "brave": ("x-subscription-token", KEY, None, "?q=a+b%26c&count=3", ("web", "url", "description")),
    "searxng": ("accept", "application/json", None, "/search?q=a+b%26c&format=json", ("results", "url", "content")),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_service_is_asked_in_its_own_way(serve: Callable[..., Service], name: str):
    header, value, body, path, (place, link, text) = PLACES[name]
    items = [{link: f"http://{number}", "title": f"t{number}", text: f"p{number}"} for number in range(9)]
    service = serve(Reply({"web": {"results": items}} if place == "web" else {place: items}), Reply({place: None}))
    search = search_of(service.url, provider=name)
    assert search.search("a b&c") == [SearchResult(f"http://{n}", f"t{n}", f"p{n}", None) for n in range(3)]
    asked = service.asked[0]
    assert (asked.headers[header], asked.body, asked.path) == (value, body, f"/find{path}")
    assert search.search("nothing there") == []


def test_every_service_of_its_own_needs_a_key():
    for name, provider in PROVIDERS.items():
        if provider.url:
            assert provider.url.startswith("https://")
            with pytest.raises(ValueError, match="SEARCH_API_KEY"):
                ProviderSettings(name).complete({})


def test_the_environment_says_what_is_asked():
    given = {
        "SEARCH_PROVIDER": "searxng",
        "SEARCH_BASE_URL": "http://a/",
        "SEARCH_API_KEY": " k \n",
        "SEARCH_CACHE": "c",
    }
    settings = ProviderSettings().complete(given)
    assert (settings.provider, settings.base_url, settings.api_key, settings.cache) == (
        "searxng",
        "http://a/",
        "k",
        "c",
    )
    assert ProviderSettings("json", "http://b").complete(given).base_url == "http://b"
    assert "k" not in repr(ProviderSettings(api_key="kkkk")).split("cache")[0].replace("api_key", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "SEARCH_PROVIDER to one of serper"),
        ({"provider": "json"}, "SEARCH_BASE_URL"),
        ({"provider": "json", "base_url": "file:///etc/passwd"}, "http"),
        ({"provider": "json", "base_url": "http:///x"}, "http"),
        ({"provider": "json", "base_url": "http://a\nb"}, "http"),
        ({"provider": "json", "base_url": "http://me:secret@a/"}, "belongs in SEARCH_API_KEY"),
        ({"provider": "serper", "api_key": "sec\nret"}, "not ASCII"),
        ({"provider": "serper", "api_key": "k", "timeout": 0}, "timeout must be more than 0"),
        ({"provider": "serper", "api_key": "k", "rate": 0}, "rate must be more than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said) as error:
        ProviderSettings(**settings).complete({})
    assert "sec" not in str(error.value).replace("seconds", "")


def test_an_unknown_provider_is_named():
    with pytest.raises(KeyError, match="did you mean 'serper'"):
        ProviderSettings("serperr").complete({})


def test_what_may_pass_is_tried_again(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm_grpo.envs.web_search.FIRST_PAUSE", 0.1)
    service = serve(Reply(status=500), Reply(status=503), Reply(GOOD))
    assert search_of(service.url).search("boats") == FOUND
    first, second, third = (asked.at for asked in service.asked)
    assert second - first >= 0.1 and third - second >= 0.2
    service = serve(Reply(status=500))
    assert failure(search_of(service.url)) == "the search failed: status 500 (Internal Server Error)"
    assert len(service.asked) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_what_will_not_pass_is_not_tried_again(serve: Callable[..., Service], status: int):
    other = serve(Reply(GOOD))
    service = serve(Reply(KEY.encode(), status, {"Location": other.url, "Retry-After": "1"}))
    assert str(status) in failure(search_of(service.url))
    assert len(service.asked) == 1 and not other.asked, "the key must not follow a redirect"


@pytest.mark.parametrize("as_date", [False, True])
def test_a_service_that_has_had_enough_is_left_alone(serve: Callable[..., Service], as_date: bool):
    until = int(time.time()) + 2
    earliest = time.monotonic() + until - time.time()
    service = serve(
        Reply(status=429, headers={"Retry-After": formatdate(until, usegmt=True) if as_date else "1"}), Reply(GOOD)
    )
    search = search_of(service.url)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(search.search, "boats", 2)
        while not service.asked:
            time.sleep(0.01)
        time.sleep(0.3)
        second = pool.submit(search.search, "cars", 2)
        assert first.result() == second.result() == FOUND
    assert len(service.asked) == 3
    earliest = earliest if as_date else service.asked[0].at + 1
    assert all(asked.at > earliest - 0.05 for asked in service.asked[1:]), "nobody asks before it is time"


def test_nobody_waits_for_longer_than_a_query_may_take(serve: Callable[..., Service]):
    service = serve(Reply(status=429, headers={"Retry-After": "3600"}))
    search = search_of(service.url)
    started = time.monotonic()
    assert "429" in failure(search)
    assert "too many searches" in failure(search, "another")
    assert time.monotonic() - started < 5 and len(service.asked) == 1


@pytest.mark.parametrize("reply", [Reply(GOOD, seconds=60), Reply(GOOD, drip=0.05)])
def test_a_slow_service_is_given_up(serve: Callable[..., Service], reply: Reply):
    service = serve(reply)
    started = time.monotonic()
    assert failure(search_of(service.url, timeout=0.4, retries=0)) == "the search failed: no answer in time"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'{"results": 5}', b'{"results": [1]}', b"[]", b"\xff", b"[" * 100_000],
)
def test_an_answer_that_is_none_is_said_to_be(serve: Callable[..., Service], body: bytes):
    service = serve(Reply(body))
    assert failure(search_of(service.url)) == "the search failed: an answer that cannot be read"
    assert len(service.asked) == 1


def test_a_huge_answer_is_not_read_to_its_end(serve: Callable[..., Service]):
    service = serve(Reply(b'{"results": ["' + b"x" * (2 * MAX_REPLY_BYTES)))
    assert failure(search_of(service.url)) == "the search failed: an answer of over 4 MiB"


def test_a_service_that_is_not_there(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm_grpo.envs.web_search.FIRST_PAUSE", 0.01)
    service = serve(Reply(GOOD))
    service.http.server_close()
    assert failure(search_of(service.url)) == "the search failed: no connection (ConnectionRefusedError)"


def test_a_connection_that_breaks_off_is_tried_again(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm_grpo.envs.web_search.FIRST_PAUSE", 0.01)
    service = serve(Reply(b"", headers={"Content-Length": "x" * 70_000}), Reply(GOOD))
    assert search_of(service.url).search("boats") == FOUND


def test_the_key_is_shown_nowhere(serve: Callable[..., Service], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    echo = {"results": [{"id": KEY, "title": f"Bearer {KEY}", "text": f"...{KEY}..."}]}
    found = search_of(serve(Reply(echo)).url).search("boats")
    assert found == [SearchResult("[key]", "Bearer [key]", "...[key]...", None)]
    search = search_of(serve(Reply(KEY.encode(), 401)).url + f"?key={KEY}")
    failure(search), failure(search, "another")
    assert KEY not in caplog.text and KEY not in repr(search.settings).split("base_url")[0]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1, "logged once"


def test_results_are_kept(serve: Callable[..., Service], tmp_path: Path):
    service = serve(Reply(GOOD))
    cache = str(tmp_path / "found.db")
    search = search_of(service.url + f"?key={KEY}", cache=cache)
    assert search.search("boats", 2) == search.search("boats ", 2) == FOUND
    assert search_of(service.url, cache=cache).search("boats", 2) == FOUND, "the next run has it too"
    assert len(service.asked) == 1
    assert KEY.encode() not in (tmp_path / "found.db").read_bytes()
    assert search_of(service.url).search("boats", 2) == FOUND
    assert len(service.asked) == 2
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(ValueError, match="SEARCH_CACHE"):
        search_of(service.url, cache=str(tmp_path / "text"))


def test_failures_are_not_kept(serve: Callable[..., Service]):
    service = serve(Reply(status=404), Reply(GOOD))
    search = search_of(service.url)
    failure(search)
    assert search.search("boats") == FOUND


def test_equal_queries_at_the_same_time_are_one_request(serve: Callable[..., Service]):
    service = serve(Reply(GOOD, seconds=0.3))
    search = search_of(service.url)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(search.search, ["boats"] * 8)) == [FOUND] * 8
    assert len(service.asked) == 1
    broken = search_of(serve(Reply(status=404, seconds=0.3)).url)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: failure(broken), range(4)))) == 1
    assert not broken.in_flight


def test_requests_keep_their_pace(serve: Callable[..., Service]):
    service = serve(Reply(GOOD))
    search = search_of(service.url, rate=10.0)
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(search.search, [f"boats {number}" for number in range(6)]))
    assert time.monotonic() - started >= 0.5, "six requests at ten in a second begin 0.1 seconds apart"
    assert len(service.asked) == 6


def test_a_query_is_cleaned_and_cut(serve: Callable[..., Service]):
    service = serve(Reply(GOOD))
    search = search_of(service.url)
    search.search("\ud800 red\x00\tboat " + "x" * 100_000)
    assert service.asked[0].body["query"].startswith("red\x00 boat x") and len(service.asked[0].body["query"]) == 400
    assert failure(search, " \n") == "the query is empty"


def test_long_passages_are_cut(serve: Callable[..., Service]):
    service = serve(Reply({"results": [{"id": "1", "title": "t", "text": "word\n" * 10_000}]}))
    passage = search_of(service.url).search("boats", characters=100)[0].passage
    assert len(passage) <= 100 and passage.startswith("word word") and passage.endswith(" ...")
