"""A connection to a driver partition: requests and their replies, and what it tells by itself.

A partition is not trusted. What is no packet, comes with descriptors or has the wrong form ends the
connection, and is an error to whoever waits; it never is one to anybody else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from duovisor.controlling.drivers.control import receive_packet, send_packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.partitions.errors import PartitionGoneError, PartitionRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EVENTS_KEPT = 256
PACKETS_PER_TURN = 16
REQUEST_TIMEOUT_S = 5.0


def bind_listener(path: Path) -> socket.socket:
    """A listening socket at ``path`` for a partition's ``listener``; only its owner may connect.

    Raises ``OSError``.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # the mode of the socket's file is what fchmod says before bind
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


class ControlConnection:
    """One end of a connected control socket, which it owns; needs a running event loop."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._numbers = 0
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._arrived = asyncio.Event()
        self._ending: str | None = None
        self._loop.add_reader(connected, self._read)

    @classmethod
    async def connect(cls, path: Path) -> ControlConnection:
        """Connect to a partition's listener. Raises ``PartitionGoneError`` when nobody listens there."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connected.connect(str(path))
        except OSError as error:  # a full backlog too: whoever listens there does not accept
            connected.close()
            raise PartitionGoneError(f"no partition listens at {path}: {error.strerror}") from error
        return cls(connected)

    @property
    def is_open(self) -> bool:
        return self._ending is None

    async def request(
        self,
        do: str,
        *,
        descriptors: Mapping[str, int] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        **fields: Any,
    ) -> dict[str, Any]:
        """Tell the partition to do something and return its reply; the caller keeps the descriptors.

        Raises ``PartitionRefusedError`` with its reason, or ``PartitionGoneError``.
        """
        self._require_open()
        self._numbers += 1
        number = self._numbers
        given = descriptors or {}
        message = {"do": do, "id": number, **fields, "descriptors": list(given)}
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._pending[number] = answer
        try:
            send_packet(self._socket, message, tuple(given.values()))
            async with asyncio.timeout(timeout_s):
                reply = await answer
        except OSError as error:  # TimeoutError is one
            reason = f"did not answer {do} within {timeout_s:g} s" if answer.cancelled() else str(error)
            raise PartitionGoneError(f"the partition {reason}") from error
        finally:
            self._pending.pop(number, None)
        if reply.get("ok") is not True:
            raise PartitionRefusedError(str(reply.get("message", "no reason given")))
        return reply

    async def next_event(self) -> dict[str, Any]:
        """The next thing that the partition tells by itself; one task at a time may wait.

        Raises ``PartitionGoneError`` when the connection has ended and nothing is left.
        """
        while not self._events:
            self._require_open()
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

    def close(self) -> None:
        """Close the connection; whoever waits learns that it is closed."""
        self._end("the connection was closed")

    def _require_open(self) -> None:
        if self._ending is not None:
            raise PartitionGoneError(f"the partition is gone: {self._ending}")

    def _read(self) -> None:
        try:
            for _ in range(PACKETS_PER_TURN):  # others must have their turn
                packet = receive_packet(self._socket)
                if packet is None:
                    return
                if packet.descriptors:
                    packet.close()
                    raise DriverError("it sent descriptors")
                self._take(packet.message)
        except (EOFError, OSError, DriverError) as error:
            self._end(str(error))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._events.append(message)
            self._arrived.set()
            return
        number = message.get("id")
        answer = self._pending.get(number) if isinstance(number, int) else None
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _end(self, reason: str) -> None:
        if self._ending is not None:
            return
        self._ending = reason
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(PartitionGoneError(f"the partition is gone: {reason}"))
        self._arrived.set()
