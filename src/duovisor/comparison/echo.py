"""Pings in Python, from the host to a guest: every few milliseconds one, each answer's time kept.

ICMP echo, RFC 792. A guest's kernel answers it without any program's help, so that what is measured is the
way there and back. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

INTERVAL_S = 0.005
_HEADER = Struct("!BBHHH")
_REQUEST, _REPLY = 8, 0
_BYTES = 2048
_IP_HEADER_MIN = 20


class Echo(NamedTuple):
    """When a ping was sent (seconds of the monotonic clock), and after how long its answer came."""

    sent_at: float
    round_trip_s: float | None


class Echoes:
    """Pings that are under way; ``collect`` when it is over."""

    def __init__(self, address: str, identifier: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setblocking(False)
        self._address = address
        self._identifier = identifier
        self._sent: list[float] = []
        self._answered: dict[int, float] = {}

    async def run(self) -> None:
        """Send and receive until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._receive)
        try:
            while True:
                self._send()
                await asyncio.sleep(INTERVAL_S)
        finally:
            loop.remove_reader(self._socket)

    def close(self) -> None:
        self._socket.close()

    def collect(self) -> list[Echo]:
        """Every ping in the order of sending."""
        return [Echo(sent, self._answered.get(index)) for index, sent in enumerate(self._sent)]

    def _send(self) -> None:
        packet = build_request(self._identifier, len(self._sent) & 0xFFFF)
        self._sent.append(time.monotonic())
        try:
            self._socket.sendto(packet, (self._address, 0))
        except OSError:
            return  # the guest's port is just not there: no answer will come

    def _receive(self) -> None:
        now = time.monotonic()
        while True:
            try:
                packet = self._socket.recv(_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            number = parse_reply(packet, self._identifier)
            if number is not None:
                self._note(number, now)

    def _note(self, number: int, now: float) -> None:
        last = len(self._sent) - 1
        index = last - ((last - number) & 0xFFFF)
        if index >= 0 and index not in self._answered:
            self._answered[index] = now - self._sent[index]


def build_request(identifier: int, number: int) -> bytes:
    """An echo request without data."""
    body = _HEADER.pack(_REQUEST, 0, 0, identifier, number)
    return _HEADER.pack(_REQUEST, 0, compute_checksum(body), identifier, number)


def parse_reply(packet: bytes, identifier: int) -> int | None:
    """The number of the request that an IP packet answers; None if it is anything else."""
    if len(packet) < _IP_HEADER_MIN:
        return None
    start = (packet[0] & 0xF) * 4
    if len(packet) < start + _HEADER.size:
        return None
    kind, _, _, found, number = _HEADER.unpack_from(packet, start)
    return int(number) if kind == _REPLY and found == identifier else None


def compute_checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@asynccontextmanager
async def start_echoes(address: str, identifier: int) -> AsyncIterator[Echoes]:
    """Ping meanwhile. Raises ``OSError`` without the right to."""
    echoes = Echoes(address, identifier)
    task = asyncio.create_task(echoes.run())
    try:
        yield echoes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        echoes.close()


class EchoVerdict(NamedTuple):
    """``gap_ms``: the longest time in which no answered ping was sent; ``lost``: never answered."""

    sent: int
    lost: int
    gap_ms: float


def judge(echoes: list[Echo], *, since: float = 0.0) -> EchoVerdict:
    """What pings sent after ``since`` met. One that waits for its answer is part of the gap.

    The last few may be answered after the end: those behind the last answer are not counted.
    """
    counted = [echo for echo in echoes if echo.sent_at >= since]
    answered = [index for index, echo in enumerate(counted) if echo.round_trip_s is not None]
    if not answered:
        return EchoVerdict(len(counted), len(counted), 0.0)
    counted = counted[: answered[-1] + 1]
    gap, last = 0.0, counted[0].sent_at
    for echo in counted:
        if echo.round_trip_s is not None:
            arrived = echo.sent_at + echo.round_trip_s
            gap, last = max(gap, arrived - last), max(last, arrived)
    return EchoVerdict(len(counted), len(counted) - len(answered), gap * 1e3)
