"""What a server that data name can do to whoever reads the data: nothing beyond the limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data.files import png, turns, write_jsonl
from tests.envs.web import Reply, Service
from vlm_grpo.cli.check import main as check
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.data.images import open_image
from vlm_grpo.records import ImageRef
from vlm_grpo.web import (
    Limits,
    PrivateAddressError,
    TooLargeError,
    WebError,
    fetch_bytes,
    fetch_url,
    is_private,
)

OPEN = Limits(private=True)


def service(*replies: Reply) -> Service:
    return Service(lambda number: replies[min(number, len(replies) - 1)])


def test_content_comes_through_redirects():
    with service(Reply(b"", 302, {"Location": "/there"}), Reply(b"content")) as web:
        assert fetch_url(web.url, OPEN) == b"content"
        assert [asked.path for asked in web.asked] == ["/find", "/there"]


def test_size_is_limited_with_and_without_a_length():
    with service(Reply(bytes(5000))) as web, pytest.raises(TooLargeError, match="over 4096 bytes"):
        fetch_url(web.url, Limits(size=4096, private=True))


def test_time_is_limited_in_all():
    """One byte each 0.05 s would take 5 s, though no single read takes long."""
    begun = time.monotonic()
    with service(Reply(bytes(100), drip=0.05)) as web, pytest.raises(TimeoutError, match="not there within"):
        fetch_url(web.url, Limits(seconds=0.3, private=True))
    assert time.monotonic() - begun < 2


@contextmanager
def endless_headers() -> Iterator[str]:
    """A server whose headers never end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                connection.sendall(b"a")
                time.sleep(0.02)
        except OSError:
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    thread.join(5)  # the client has closed its side
    assert not thread.is_alive()
    listener.close()


def test_headers_that_never_end_are_left():
    with endless_headers() as url, pytest.raises(TimeoutError, match="not there within"):
        fetch_url(url, Limits(seconds=0.3, private=True))


def test_redirects_are_counted():
    with service(Reply(b"", 302, {"Location": "/again"})) as web:
        with pytest.raises(WebError, match="a redirect too many"):
            fetch_url(web.url, Limits(redirects=3, private=True))
        assert len(web.asked) <= 4


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:text/plain,a"])
def test_redirects_lead_to_web_servers_alone(target: str):
    with (
        service(Reply(b"", 302, {"Location": target})) as web,
        pytest.raises(WebError, match=r"says 302|no connection"),
    ):
        fetch_url(web.url, OPEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"])
def test_private_addresses_are_refused(host: str):
    with service(Reply(b"secret")) as web:
        with pytest.raises(PrivateAddressError, match="--allow_private_urls"):
            fetch_url(web.url.replace("127.0.0.1", host))
        assert web.asked == []


def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The first server stands for a public one: its address alone is allowed."""
    with service(Reply(b"secret")) as inner, service(Reply(b"", 302, {"Location": inner.url})) as outer:
        port = outer.http.server_port
        real = socket.getaddrinfo
        monkeypatch.setattr("vlm_grpo.web.is_private", lambda text: text != "203.0.113.9")
        resolved = {"public.example": "203.0.113.9"}
        monkeypatch.setattr(
            "vlm_grpo.web.socket.getaddrinfo",
            lambda host, *rest, **more: (
                [(2, 1, 6, "", (resolved[host], rest[0]))] if host in resolved else real(host, *rest, **more)
            ),
        )
        connect = socket.socket.connect
        monkeypatch.setattr(
            "vlm_grpo.web.socket.socket.connect", lambda self, place: connect(self, ("127.0.0.1", place[1]))
        )
        with pytest.raises(PrivateAddressError, match=r"127\.0\.0\.1"):
            fetch_url(f"http://public.example:{port}/")
        assert len(outer.asked) == 1 and inner.asked == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *dict.fromkeys([("10.1.2.3", True), ("172.16.0.1", True), ("192.168.1.1", True), ("169.254.169.254", True)]),
        *[("224.0.0.1", True), ("::1", True), ("fe80::1%eth0", True), ("fc00::1", True), ("::ffff:10.0.0.1", True)],
        *[("64:ff9b::a00:1", True), ("2002:a00:1::", True), ("100.64.0.1", True)],
        *[("8.8.8.8", False), ("2606:4700::1111", False), ("64:ff9b::808:808", False)],
    ],
)
def test_what_is_private(address: str, expected: bool):
    assert is_private(address) is expected


def test_a_server_that_is_not_there_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WebError, match=r"no connection: .*refused"):
        fetch_url(f"http://127.0.0.1:{port}/", OPEN)
    with pytest.raises(WebError, match="no connection"):
        fetch_url("http://a b/", OPEN)


def test_requests_without_redirects_leave_them():
    with service(Reply(b"", 302, {"Location": "/there"})) as web:
        with pytest.raises(OSError, match="302"):
            fetch_bytes(web.url, Limits(redirects=0, private=True))
        assert len(web.asked) == 1


def test_images_of_data_obey_and_the_flag_allows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with service(Reply(png())) as web:
        data = write_jsonl(tmp_path / "a.jsonl", [{"image": web.url, "conversations": turns("<image>q", "a")}])
        words = ["--data_file_paths", data, "--decode"]
        assert check(words) == 1
        assert "--allow_private_urls allows it" in capsys.readouterr().out
        assert web.asked == []
        assert check([*words, "--allow_private_urls"]) == 0
        (ref,) = load_dataset(data)[0]["images"]
        with pytest.raises(ValueError, match=r"a.jsonl:1: cannot decode .*is private.*--allow_private_urls"):
            open_image(ref)
        (ref,) = load_dataset(data, allow_private_urls=True)[0]["images"]
        assert open_image(ref).size == (8, 6)


def test_a_key_in_a_url_is_not_shown():
    ref = ImageRef("http://me:pa55@127.0.0.1:1/a.png?key=k1", "a.jsonl:1")
    with pytest.raises(ValueError, match="cannot decode") as error:
        open_image(ref)
    assert "pa55" not in str(error.value) and "k1" not in str(error.value)


def test_documents_and_files_are_no_urls(tmp_path: Path):
    """Data files are not fetched: a URL as a data file is refused before anything is asked."""
    with service(Reply(b"{}")) as web:
        with pytest.raises((DataError, OSError)):
            load_dataset(f"{web.url}.jsonl")
        assert web.asked == []
