from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_vllm import ClosedError, FakeVLLM
from vlm_grpo.rollouts.engines.servers import (
    ServerClient,
    ServerPool,
    ServerRefusalError,
    ServerUnavailableError,
    Weights,
)


class Kind:
    """A kind of server that has its weights already."""

    start_command = "serve model"

    def check(self, client: ServerClient) -> None:
        client.get("/version", key="version")

    def session(self, client: ServerClient) -> str:
        return str(client.get("/weight_info", key="weight_version"))

    def load(self, client: ServerClient, folder: Path, session: str) -> None:
        client.post("/update_weight_version", {"new_version": session})


@pytest.fixture
def fakes() -> Iterator[list[FakeVLLM]]:
    fakes = [FakeVLLM().start(), FakeVLLM().start()]
    yield fakes
    for fake in fakes:
        fake.stop()


def pool_of(fakes: list[FakeVLLM], folder: Path | None, seconds: float = 1.0, **options: float) -> ServerPool:
    clients = [ServerClient(fake.url, seconds=seconds) for fake in fakes]
    pool = ServerPool(
        clients, Kind(), wait_seconds=options.get("wait", 3.0), concurrency=int(options.get("at_once", 2))
    )
    pool.set_weights(Weights("run-1", folder))
    return pool


def test_a_url_is_checked():
    with pytest.raises(ValueError, match="http://node1:8000"):
        ServerClient("node1:8000", seconds=1)


def test_statuses_are_told_apart(fakes: list[FakeVLLM]):
    """4xx is final, 5xx and 429 may pass; 501 says that the server cannot do it."""
    client, fake = ServerClient(fakes[0].url, seconds=1), fakes[0]
    for status, expected in ((400, ServerRefusalError), (501, ServerRefusalError), (500, ServerUnavailableError)):
        fake.before = lambda path, status=status: status
        with pytest.raises(expected, match=f"made to answer {status}"):
            client.get("/version", key="version")


def test_no_answer_is_no_final_error(fakes: list[FakeVLLM]):
    fake = fakes[0]
    client = ServerClient(fake.url, seconds=0.2)

    def close(path: str) -> None:
        raise ClosedError("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")

    fake.before = close
    with pytest.raises(ServerUnavailableError, match="IncompleteRead"):
        client.get("/version", key="version")
    fake.before = lambda path: time.sleep(0.5)
    with pytest.raises(ServerUnavailableError, match="within"):
        client.post("/version")
    with pytest.raises(ServerUnavailableError, match="refused"):
        ServerClient("http://127.0.0.1:9", seconds=1).get("/version", key="version")


def test_results_keep_their_order_and_servers_share_the_work(fakes: list[FakeVLLM], tmp_path: Path):
    counts: Counter[str] = Counter()

    def work(client: ServerClient, item: int) -> int:
        counts[client.url] += 1
        time.sleep(0.002 * (item % 5))
        return item * item

    assert pool_of(fakes, tmp_path).map(work, range(40)) == [item * item for item in range(40)]
    assert all(counts[fake.url] >= 10 for fake in fakes)


def test_requests_at_a_time_are_limited(fakes: list[FakeVLLM], tmp_path: Path):
    running: Counter[str] = Counter()
    highest: list[int] = []

    def work(client: ServerClient, item: int) -> None:
        running[client.url] += 1
        highest.append(running[client.url])
        time.sleep(0.01)
        running[client.url] -= 1

    pool_of(fakes, tmp_path, at_once=3).map(work, range(30))
    assert max(highest) == 3


def test_without_weights_nothing_is_generated(fakes: list[FakeVLLM]):
    pool = ServerPool([ServerClient(fakes[0].url, seconds=1)], Kind(), wait_seconds=1, concurrency=1)
    with pytest.raises(ValueError, match="update_weights comes before generate"):
        pool.map(lambda client, item: item, [1])


def test_the_first_contact_waits_for_a_server_that_starts(fakes: list[FakeVLLM]):
    late = FakeVLLM().start()
    late.stop()
    pool = pool_of([fakes[0], late], None)
    threading.Timer(0.3, late.start).start()
    pool.check()
    assert late.bodies("/version")
    late.stop()


def test_a_server_that_stays_away_is_named(fakes: list[FakeVLLM], tmp_path: Path):
    gone = FakeVLLM().start()
    gone.stop()
    pool = pool_of([gone], tmp_path, wait=0.3)
    pattern = rf"(?s){gone.url}: failing for \d+ s, last: .*refused.*serve model"
    for action in (pool.check, pool.load_weights, lambda: pool.map(lambda client, item: item, [1])):
        with pytest.raises(TimeoutError, match=pattern):
            action()


def test_a_request_that_always_fails_ends_the_run(fakes: list[FakeVLLM], tmp_path: Path):
    """Servers that are well otherwise are no reason to send it for ever."""

    def work(client: ServerClient, item: int) -> int:
        if item == 3:
            raise ServerUnavailableError("status 500: assertion failed")
        return item

    with pytest.raises(TimeoutError, match="failed a request for more than"):
        pool_of(fakes, tmp_path, wait=0.5).map(work, range(10))


def test_an_error_of_a_request_ends_the_others(fakes: list[FakeVLLM], tmp_path: Path):
    def work(client: ServerClient, item: int) -> int:
        if item == 3:
            raise ServerRefusalError("status 400", 400)
        time.sleep(0.02)
        return item

    started = time.monotonic()
    with pytest.raises(ServerRefusalError):
        pool_of(fakes, tmp_path).map(work, range(1000))
    assert time.monotonic() - started < 2


def test_weights_without_files_cannot_be_given_again(fakes: list[FakeVLLM]):
    pool = pool_of(fakes, None)
    with pytest.raises(ValueError, match="resume the run from its last checkpoint"):
        pool.map(lambda client, item: item, [1])


def test_one_process_loads_for_all(fakes: list[FakeVLLM], tmp_path: Path):
    """Two processes notice at once that a server was restarted; it loads once."""
    pools = [pool_of(fakes[:1], tmp_path) for _ in range(2)]
    fakes[0].before = lambda path: time.sleep(0.05)
    threads = [threading.Thread(target=pool.map, args=(lambda client, item: item, [1, 2])) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fakes[0].bodies("/update_weight_version")) == 1
    assert not list(tmp_path.iterdir())
