"""Fetches a file over HTTP, HTTPS or from this host, whole and with the right checksum or not at all.

What has come is kept by its checksum, so that a fetch that broke off goes on where it was (RFC 9110, 14.2).
These functions block.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.errors import DownloadError
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedRandom
    from pathlib import Path

SCHEMES = ("https", "http", "file")
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # for a server that says nothing
PARTIAL = 206
RANGE_IS_OVER = 416


class Wanted(NamedTuple):
    """What is to be fetched: ``sha256`` in lower-case hexadecimal, at most ``max_bytes``."""

    url: str
    sha256: str
    max_bytes: int


def check_url(url: str) -> str:
    """Return a URL that can be fetched. Raises ``ValueError``."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{url!r} is not a URL of http, https or file")
    if parts.scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise ValueError(f"{url!r} names no file of this host; write file:///srv/image.qcow2")
    if parts.scheme != "file" and not parts.hostname:
        raise ValueError(f"{url!r} names no host")
    if parts.password is not None:
        raise ValueError("a password in a URL would be kept in the image's description")
    return url


@contextlib.contextmanager
def fetched(
    wanted: Wanted, folder: Path, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]
) -> Iterator[Path]:
    """The file, fetched into ``folder``; removed on leaving, unless it is not whole yet.

    ``progress`` is told of bytes, and of how many (0: not known). Raises ``DownloadError``.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{wanted.sha256}.part"
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{wanted.url} is being fetched already", remedy="wait for its end") from None
        _fetch(wanted, file, progress, is_cancelled)
        try:
            _check(wanted, file)
            yield path
        finally:
            path.unlink(missing_ok=True)


def _fetch(
    wanted: Wanted, file: IO[bytes], progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]
) -> None:
    have = file.seek(0, os.SEEK_END)
    try:
        with _open(wanted.url, have) as source:
            if not source.goes_on:
                file.truncate(have := 0)
            total = have + source.size_bytes if source.size_bytes else 0
            _require_small(wanted, total)
            while block := source.content.read(BLOCK_BYTES):
                if is_cancelled():
                    raise DownloadError(f"{wanted.url}: cancelled after {format_bytes(have)}")
                file.write(block)
                have += len(block)
                _require_small(wanted, have)
                progress(have, total)
            if have < total:
                raise DownloadError(
                    f"{wanted.url}: it broke off after {format_bytes(have)}", remedy="try again: that is kept"
                )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_IS_OVER and have:
            return  # all of it is here; its checksum says whether it is right
        raise DownloadError(f"{wanted.url}: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DownloadError(
            f"{wanted.url}: {said} (after {format_bytes(have)})", remedy="try again: what has come is kept"
        ) from error
    finally:
        file.flush()


@contextlib.contextmanager
def _open(url: str, have: int) -> Iterator[_Source]:
    """The rest of what is at a URL, of which ``have`` bytes are here."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        with open(urllib.parse.unquote(parts.path), "rb") as content:
            yield _Source(content, os.fstat(content.fileno()).st_size, goes_on=False)
        return
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _OPENER.open(request, timeout=TIMEOUT_S) as reply:
        yield _Source(reply, int(reply.headers.get("Content-Length") or 0), reply.status == PARTIAL)


class _Source(NamedTuple):
    """What is read; ``size_bytes`` is what comes now, 0 if that is not said."""

    content: IO[bytes]
    size_bytes: int
    goes_on: bool


def _build_opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone: a redirection must not lead to a file of this host."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


_OPENER = _build_opener()


def _require_small(wanted: Wanted, size_bytes: int) -> None:
    if size_bytes > wanted.max_bytes:
        raise DownloadError(
            f"{wanted.url} has more than {format_bytes(wanted.max_bytes)}", remedy="give a larger --max-size"
        )


def _check(wanted: Wanted, file: BufferedRandom) -> None:
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        raise DownloadError(
            f"what came from {wanted.url} has the sha256 {found}, not {wanted.sha256}",
            remedy="look for the checksum beside the image",
        )
