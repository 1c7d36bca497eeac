"""The client's side of a WebSocket, as much as a serial console needs of RFC 6455: no extensions."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from duovisor.client.errors import ConnectionLostError, ReplyError
from duovisor.client.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.client.connection import Call
    from duovisor.client.endpoint import Endpoint
    from duovisor.client.stream import Stream

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
MAX_MESSAGE_BYTES = 16 << 20
_LENGTH_16, _LENGTH_64 = 126, 127  # RFC 6455, 5.2: the length follows in 2 or 8 bytes
_CONTROL = 0x8


class Opcode(IntEnum):
    """What a frame is; RFC 6455, 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Frame(NamedTuple):
    """One frame; ``is_final``: it ends its message."""

    opcode: int
    is_final: bool
    payload: bytes


class Closed(NamedTuple):
    """How the service ended the conversation; code 1006: without a word."""

    code: int
    reason: str


def build_frame(opcode: Opcode, payload: bytes, mask: bytes) -> bytes:
    """A final frame from a client, which must be masked."""
    length = len(payload)
    if length < _LENGTH_16:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | _LENGTH_16, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | _LENGTH_64, length)
    key = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(length, "big")


def parse_frame(data: bytes) -> tuple[Frame, bytes] | None:
    """The first frame of what a service sent and what follows; None while it is not complete.

    Raises ``ReplyError`` for a frame that a service never sends.
    """
    if len(data) < 2:  # the shortest head
        return None
    first, second = data[0], data[1]
    if first & 0x70 or second & 0x80:
        raise ReplyError("the console sent a frame that is against RFC 6455")
    length, start = second, 2
    if length == _LENGTH_16:
        length, start = int.from_bytes(data[2:4], "big"), 4
    elif length == _LENGTH_64:
        length, start = int.from_bytes(data[2:10], "big"), 10
    if len(data) < start:
        return None
    if length > MAX_MESSAGE_BYTES:
        raise ReplyError("the console sent more at once than any can")
    if len(data) < start + length:
        return None
    frame = Frame(first & 0x0F, bool(first & 0x80), data[start : start + length])
    return frame, data[start + length :]


class WebSocket:
    """An open conversation; ``closed`` says how it ended."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""
        self.closed: Closed | None = None

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def has_more(self) -> bool:
        """Whether ``read`` has something without waiting for the descriptor."""
        return bool(self._stream.pending)

    def read(self) -> list[bytes]:
        """The messages that have come, without waiting. Raises ``ReplyError``."""
        data = self._stream.read()
        if data == b"":
            self.closed = self.closed or Closed(1006, "")
        self._rest += data or b""
        return list(self._take_messages())

    def send(self, data: bytes) -> None:
        """Send a binary message. Raises ``ConnectionLostError``."""
        self._stream.send(build_frame(Opcode.BINARY, data, os.urandom(4)))

    def close(self) -> None:
        """Say goodbye, if the other end still listens."""
        if self.closed is None:
            try:
                self._stream.send(build_frame(Opcode.CLOSE, struct.pack("!H", 1000), os.urandom(4)))
            except ConnectionLostError:
                pass
        self._stream.close()

    def _take_messages(self) -> Iterator[bytes]:
        while self.closed is None and (parsed := parse_frame(self._rest)) is not None:
            frame, self._rest = parsed
            if frame.opcode == Opcode.CLOSE:
                code = int.from_bytes(frame.payload[:2], "big") if frame.payload else 1005
                self.closed = Closed(code, frame.payload[2:].decode(errors="replace"))
            elif frame.opcode == Opcode.PING:
                self._stream.send(build_frame(Opcode.PONG, frame.payload, os.urandom(4)))
            elif not frame.opcode & _CONTROL:
                yield frame.payload  # a console is a stream of bytes: where its messages end means nothing


def open_websocket(
    endpoint: Endpoint, path: str, *, observe: Callable[[Call], None] = lambda call: None
) -> WebSocket:
    """Begin a WebSocket. Raises what ``open_stream`` raises, and ``ReplyError``."""
    key = base64.b64encode(os.urandom(16)).decode()
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    stream = open_stream(endpoint, path, headers, observe=observe)
    expected = base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest())
    if stream.headers.get("Sec-WebSocket-Accept", "").encode() != expected:
        stream.close()
        raise ReplyError("the service did not open a WebSocket", remedy="is this a duovisord?")
    return WebSocket(stream)
