"""Requests to the kernel's bridge that no ioctl makes: a few messages of rtnetlink, built and parsed here.

docs/decisions/018 says why not through a library. Sources: Linux ``netlink.h``, rtnetlink(7).
"""

from __future__ import annotations

import os
import socket
from struct import Struct
from typing import NamedTuple

REQUEST, ACK, EXCL, CREATE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
ERROR, DONE = 2, 3
NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_SOL_NETLINK, _STRICT_CHECK = 270, 12
_ANSWER_BYTES = 1 << 16
TIMEOUT_S = 5.0

_HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")
_NUMBER = Struct("=i")


class Message(NamedTuple):
    """A message without its header: the family's own structure and attributes behind it."""

    kind: int
    flags: int
    body: bytes


class Netlink:
    """A socket to rtnetlink in the network namespace of the thread that opens it. Raises ``OSError``."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)  # dumps may be filtered, and are
        self._socket.settimeout(TIMEOUT_S)
        self._sequence = 0

    def change(self, messages: list[Message]) -> None:
        """Let the kernel do all of these, in one call; raises the first ``OSError``, all of them tried."""
        if not messages:
            return
        first = self._sequence + 1
        self._send([message._replace(flags=message.flags | ACK) for message in messages])
        waiting, failed = set(range(first, self._sequence + 1)), 0
        while waiting:
            for kind, sequence, body in parse_messages(self._socket.recv(_ANSWER_BYTES)):
                if kind == ERROR and sequence in waiting:
                    waiting.remove(sequence)
                    failed = failed or -_NUMBER.unpack_from(body)[0]
        if failed:
            raise OSError(failed, os.strerror(failed))

    def ask(self, message: Message) -> list[bytes]:
        """All that the kernel has of something, each a family's own structure with attributes."""
        self._send([message._replace(flags=message.flags | DUMP)])
        answers: list[bytes] = []
        while True:
            for kind, sequence, body in parse_messages(self._socket.recv(_ANSWER_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind in (ERROR, DONE):
                    if number := -_NUMBER.unpack_from(body)[0]:
                        raise OSError(number, os.strerror(number))
                    return answers
                answers.append(body)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, messages: list[Message]) -> None:
        request = bytearray()
        for kind, flags, body in messages:
            self._sequence += 1
            request += _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, self._sequence, 0) + body
        self._socket.send(request)


def build_attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def parse_attributes(body: bytes) -> list[tuple[int, bytes]]:
    """The attributes that a body consists of: their kinds, without the mark of nested ones, and values."""
    found = []
    while len(body) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(body)
        if not _ATTRIBUTE.size <= size <= len(body):
            break
        found.append((kind & _TYPE_MASK, body[_ATTRIBUTE.size : size]))
        body = body[size + -size % 4 :]
    return found


def parse_messages(answer: bytes) -> list[tuple[int, int, bytes]]:
    """The kind, sequence number and body of each message of an answer."""
    found = []
    while len(answer) >= _HEADER.size:
        size, kind, _, sequence, _ = _HEADER.unpack_from(answer)
        if not _HEADER.size <= size <= len(answer):
            break
        found.append((kind, sequence, answer[_HEADER.size : size]))
        answer = answer[size + -size % 4 :]
    return found
