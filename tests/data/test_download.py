from __future__ import annotations

import re
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_grpo.data import download
from vlm_grpo.data.download import fetch, unpack

CONTENT = bytes(range(256)) * 40


class Shop:
    """What a server on this machine does: breaks off after `cuts` bytes once each, and notes what was asked."""

    def __init__(self) -> None:
        self.files = {"/a.zip": CONTENT}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.tag: str | None = '"one"'
        self.takes_ranges = True
        self.failures: list[int] = []
        self.pause = 0.0  # after each byte
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, shop: Shop, *rest: object) -> None:
        self.shop = shop
        super().__init__(*rest)

    def do_GET(self) -> None:
        shop = self.shop
        shop.ranges.append(self.headers.get("Range"))
        if shop.failures or self.path not in shop.files:
            self.send_error(shop.failures.pop(0) if shop.failures else 404)
            return
        content, start = shop.files[self.path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and shop.takes_ranges and self.headers.get("If-Range") == shop.tag:
            start = int(asked[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if shop.tag:
            self.send_header("ETag", shop.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        sent = content[start : start + (shop.cuts.pop(0) if shop.cuts else len(content))]
        for number in range(len(sent) if shop.pause else 0):
            try:
                self.wfile.write(sent[number : number + 1])
            except OSError:  # the other side has gone
                return
            time.sleep(shop.pause)
        if not shop.pause:
            self.wfile.write(sent)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, shop))
    shop.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield shop
    server.shutdown()
    server.server_close()


def get(shop: Shop, folder: Path, **options: object) -> Path:
    return fetch(f"{shop.url}/a.zip", folder / "new" / "a.zip", pause=0, **options)


def test_a_file_is_fetched_once(shop: Shop, tmp_path: Path):
    path = get(shop, tmp_path)
    assert path.read_bytes() == CONTENT and get(shop, tmp_path) == path
    assert shop.ranges == [None]
    assert [one.name for one in path.parent.iterdir()] == ["a.zip"]


def test_a_broken_connection_is_taken_up_where_it_ended(shop: Shop, tmp_path: Path):
    shop.cuts = [1000, 500]
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_another_call_goes_on(shop: Shop, tmp_path: Path):
    shop.cuts = [1000, 0]
    with pytest.raises(OSError, match=r"ended after 1,000 of 10,240 bytes; 1,000 bytes are in .*a\.zip\.part; run the"):
        get(shop, tmp_path, attempts=1)
    assert not (tmp_path / "new" / "a.zip").exists()
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.ranges[-1] == "bytes=1000-"


def test_a_part_that_is_whole_only_gets_its_name(shop: Shop, tmp_path: Path):
    get(shop, tmp_path).rename(tmp_path / "new" / "a.zip.part")
    (tmp_path / "new" / "a.zip.part.version").write_text(shop.tag)
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.ranges[1:] == ["bytes=10240-"]


def test_a_part_that_is_too_long_is_fetched_anew(shop: Shop, tmp_path: Path):
    get(shop, tmp_path).rename(tmp_path / "new" / "a.zip.part")
    (tmp_path / "new" / "a.zip.part.version").write_text(shop.tag)
    shop.files["/a.zip"] = CONTENT[:100]
    assert get(shop, tmp_path).read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("tag", ['"two"', None, 'W/"one"'])
def test_another_version_is_fetched_from_its_beginning(tag: str | None, shop: Shop, tmp_path: Path):
    """The bytes that came before belong to the old one."""
    shop.cuts = [1000, 0]
    with pytest.raises(OSError, match="run the command again"):
        get(shop, tmp_path, attempts=1)
    shop.files["/a.zip"], shop.tag, shop.cuts = CONTENT[::-1], tag, [100]
    assert get(shop, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_sends_all_again(shop: Shop, tmp_path: Path):
    shop.cuts, shop.takes_ranges = [1000], False
    assert get(shop, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(shop: Shop, tmp_path: Path):
    shop.failures = [503, 500]
    assert get(shop, tmp_path).read_bytes() == CONTENT
    with pytest.raises(OSError, match=r"/none\.zip: the server responded 404"):
        fetch(f"{shop.url}/none.zip", tmp_path / "none.zip", pause=0)
    assert len(shop.ranges) == 4
    shop.failures = [503] * 3
    with pytest.raises(OSError, match="503"):
        fetch(f"{shop.url}/b.zip", tmp_path / "b.zip", pause=0, attempts=3)


def test_a_server_that_sends_next_to_nothing_has_broken_off(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.3)
    shop.pause = 0.02  # 50 bytes a second, never a second without one
    with pytest.raises(
        OSError, match=r"the server sent less than 1,000 bytes per second; .* bytes are in .*a\.zip\.part"
    ):
        fetch(f"{shop.url}/a.zip", tmp_path / "a.zip", attempts=2, pause=0)
    assert len(shop.ranges) == 2
    shop.pause = 0
    assert fetch(f"{shop.url}/a.zip", tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_file_without_room_is_refused_before_it_comes(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=len(CONTENT) - 1))
    with pytest.raises(OSError, match=r"no space in .*: 10,240 bytes are needed but only 10,239 are free"):
        fetch(f"{shop.url}/a.zip", tmp_path / "a.zip", pause=0)
    assert len(shop.ranges) == 1 and not (tmp_path / "a.zip.part").exists()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.txt", "x")
        archive.writestr("large.txt", bytes(10**6))
    with pytest.raises(OSError, match="1,000,001 bytes are needed"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nobody_listens(tmp_path: Path):
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/a: .*0 bytes are in"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", pause=0, attempts=2)


def write_zip(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "/"), content)
    return path


def test_unpack_writes_what_is_missing(tmp_path: Path):
    archive = write_zip(tmp_path / "a.zip", a_one=b"1", a_two=b"22", three=b"333")
    assert unpack(archive, tmp_path, only="a/two") == 1
    assert unpack(archive, tmp_path) == 2
    assert unpack(archive, tmp_path) == 0
    (tmp_path / "three").write_bytes(b"3")  # half of it, of a process that was stopped
    assert unpack(archive, tmp_path) == 1
    assert [(tmp_path / name).read_bytes() for name in ("a/one", "a/two", "three")] == [b"1", b"22", b"333"]


def test_a_broken_archive_is_refused_and_leaves_no_file(tmp_path: Path):
    archive = write_zip(tmp_path / "a.zip", one=b"content that is changed")
    archive.write_bytes(archive.read_bytes().replace(b"is changed", b"was changd"))
    with pytest.raises(ValueError, match=r"a\.zip: Bad CRC-32 for file 'one'; delete .* and download it again"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="File is not a zip file"):
        unpack(archive, tmp_path)
    with pytest.raises(ValueError, match="has no file b"):
        unpack(write_zip(tmp_path / "b.zip", a=b"1"), tmp_path, only="b")


def test_an_archive_cannot_write_elsewhere(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../b", b"1")
    with pytest.raises(ValueError, match=r"\.\./b is outside"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "b").exists()
