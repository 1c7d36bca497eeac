"""Fetching images: whole and right or not at all, and where it broke off."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images.download import Wanted, check_url, fetched
from duovisor.controlling.images.errors import DownloadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096 * 3
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 1 << 30


class Server:
    """Serves ``CONTENT``; ``breaks_after`` bytes it hangs up, once."""

    def __init__(self) -> None:
        self.breaks_after: int | None = None
        self.ranges = True
        self.asked: list[str | None] = []
        self.redirect = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nobody reads it."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/image.qcow2"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        said = request.headers["Range"]
        self.asked.append(said)
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        start = int(said.removeprefix("bytes=").rstrip("-")) if said and self.ranges else 0
        if start >= len(CONTENT):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(CONTENT) - start))
        request.end_headers()
        end = len(CONTENT) if self.breaks_after is None else self.breaks_after
        self.breaks_after = None
        request.wfile.write(CONTENT[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@contextmanager
def fetch(url: str, folder: Path, *, sha256: str = SHA256, max_bytes: int = LIMIT) -> Iterator[Path]:
    with fetched(Wanted(url, sha256, max_bytes), folder, lambda done, total: None, lambda: False) as path:
        yield path


def test_a_file_comes_whole_and_goes_again(server: Server, tmp_path: Path) -> None:
    with fetch(server.url, tmp_path) as path:
        assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.breaks_after, server.ranges = 1_000_000, ranges
    with pytest.raises(DownloadError, match="after"), fetch(server.url, tmp_path):
        pass
    (kept,) = tmp_path.iterdir()
    have = kept.stat().st_size
    assert 0 < have <= 1_000_000
    with fetch(server.url, tmp_path) as path:
        assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]


def test_one_that_is_here_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{SHA256}.part").write_bytes(CONTENT)
    with fetch(server.url, tmp_path) as path:
        assert path.read_bytes() == CONTENT


def test_another_checksum_is_refused_and_nothing_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has the sha256"), fetch(server.url, tmp_path, sha256="0" * 64):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_large_one_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has more than"), fetch(server.url, tmp_path, max_bytes=1000):
        pass
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


def test_a_redirection_does_not_lead_to_a_file(server: Server, tmp_path: Path) -> None:
    server.redirect = "file:///etc/passwd"
    with pytest.raises(DownloadError), fetch(server.url, tmp_path):
        pass


def test_a_cancelled_one_ends(server: Server, tmp_path: Path) -> None:
    wanted = Wanted(server.url, SHA256, LIMIT)
    with (
        pytest.raises(DownloadError, match="cancelled"),
        fetched(wanted, tmp_path, lambda done, total: None, lambda: True),
    ):
        pass


def test_a_file_of_this_host(tmp_path: Path) -> None:
    (tmp_path / "an image.raw").write_bytes(CONTENT)
    with fetch(f"file://{tmp_path}/an%20image.raw", tmp_path / "downloads") as path:
        assert path.read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="No such file"), fetch(f"file://{tmp_path}/none", tmp_path):
        pass


def test_two_at_once_take_no_turns(server: Server, tmp_path: Path) -> None:
    with fetch(server.url, tmp_path), pytest.raises(DownloadError, match="already"):
        with fetch(server.url, tmp_path):
            pass


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "image.qcow2", "file://host/x", "file:relative", "http:///x", "https://me:secret@host/x"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|names no|password"):
        check_url(url)
