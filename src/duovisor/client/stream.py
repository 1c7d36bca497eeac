"""A connection that stays: the bytes of a reply as they come, for events and for the console.

``http.client`` hides its socket behind a buffer, which cannot be waited for beside a terminal; so the request
is written here. Events are asked for in HTTP/1.0, whose replies have no chunks and end with the connection.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import TYPE_CHECKING

from duovisor.client.connection import (
    CONNECT_TIMEOUT_S,
    HTTP_ERROR,
    Call,
    build_api_error,
    build_headers,
    build_tls,
    connect_unix,
    describe_refusal,
)
from duovisor.client.errors import ConnectionLostError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duovisor.client.endpoint import Endpoint

HEAD_TIMEOUT_S = 20.0
MAX_HEAD_BYTES = 64 << 10
READ_BYTES = 64 << 10


class Stream:
    """A socket behind a reply's head; ``fileno`` can be waited for once ``pending`` is empty."""

    def __init__(self, connection: socket.socket, pending: bytes, headers: http.client.HTTPMessage) -> None:
        self._socket = connection
        self.pending = pending
        self.headers = headers

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> bytes | None:
        """What has come; empty at the end, None when nothing is there yet (with TLS: part of a record)."""
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, TimeoutError):
            return None
        except OSError as error:
            if type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                return None
            return b""
        while (more := self._decrypted()) and (part := self._socket.recv(more)):
            data += part
        return data

    def _decrypted(self) -> int:
        """Bytes that TLS holds already, of which the descriptor knows nothing."""
        pending = getattr(self._socket, "pending", None)
        return pending() if pending is not None else 0

    def send(self, data: bytes) -> None:
        """Send all of it. Raises ``ConnectionLostError``."""
        self._socket.settimeout(HEAD_TIMEOUT_S)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionLostError("the service went away") from error
        finally:
            self._socket.settimeout(0)

    def close(self) -> None:
        self._socket.close()


def open_stream(
    endpoint: Endpoint,
    path: str,
    headers: Mapping[str, str],
    *,
    version: str = "HTTP/1.1",
    observe: Callable[[Call], None] = lambda call: None,
) -> Stream:
    """GET a path and return what follows the head of its reply.

    Raises ``ApiError``, ``ServiceUnreachableError``, ``ConnectionLostError`` or ``ReplyError``.
    """
    started, status = time.monotonic(), 0
    connection = _connect(endpoint)
    try:
        connection.settimeout(HEAD_TIMEOUT_S)
        lines = {"Host": endpoint.host or "duovisord", **build_headers(endpoint), **headers}
        head = f"GET {path} {version}\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        connection.sendall(head.encode("ascii") + b"\r\n")
        status, answered, rest = parse_head(*_read_head(connection))
        if status >= HTTP_ERROR:
            raise build_api_error(status, _read_body(connection, rest, answered))
    except (OSError, UnicodeEncodeError) as error:
        connection.close()
        raise ConnectionLostError(f"{endpoint} went away before it answered") from error
    except BaseException:
        connection.close()
        raise
    finally:
        observe(Call("GET", path, status, (time.monotonic() - started) * 1000))
    connection.settimeout(0)
    return Stream(connection, rest, answered)


def parse_head(head: bytes, rest: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and what came behind them. Raises ``ReplyError``."""
    file = io.BytesIO(head)
    words = file.readline().split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ReplyError("what answered does not speak HTTP/1", remedy="is this a duovisord?")
    try:
        return int(words[1]), http.client.parse_headers(file), rest
    except http.client.HTTPException as error:
        raise ReplyError(f"the reply cannot be read: {error!r}") from error


def _connect(endpoint: Endpoint) -> socket.socket:
    try:
        if endpoint.socket is not None:
            return connect_unix(str(endpoint.socket))
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout=CONNECT_TIMEOUT_S)
        try:
            return build_tls(endpoint).wrap_socket(plain, server_hostname=endpoint.host)
        except BaseException:
            plain.close()
            raise
    except OSError as error:
        raise describe_refusal(endpoint, error) from error


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(READ_BYTES)
        received += data
        if not data or len(received) > MAX_HEAD_BYTES:
            raise ReplyError("the reply has no head", remedy="is this a duovisord?")
    head, _, rest = received.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _read_body(connection: socket.socket, rest: bytes, headers: http.client.HTTPMessage) -> bytes:
    """The body of a refusal: as long as it says, or to the end."""
    length = headers.get("Content-Length", "")
    wanted = min(int(length), MAX_HEAD_BYTES) if length.isdigit() else MAX_HEAD_BYTES
    while len(rest) < wanted and (data := connection.recv(READ_BYTES)):
        rest += data
    return rest
