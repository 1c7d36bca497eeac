"""Packets between an owner and a partition or factory: one JSON object each, with descriptors.

They travel over sockets of kind SEQPACKET, which keep packets whole: there is nothing to frame, and a peer
cannot stop half-way through one.
"""

from __future__ import annotations

import array
import json
import os
import socket

from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PACKET_BYTES = 64 * 1024
MAX_DESCRIPTORS = 16
_ANCILLARY_BYTES = socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * 4)  # one too many is seen, and refused


class Packet:
    """A received packet; it owns its descriptors until they are taken."""

    __slots__ = ("descriptors", "message")

    def __init__(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self.message = message
        self.descriptors = descriptors

    def take_descriptors(self) -> dict[str, int]:
        """The descriptors under the names that the message gives them; the caller closes them.

        Raises ``DriverError`` when names and descriptors do not match.
        """
        names = self.message.get("descriptors", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DriverError("descriptors is not a list of names")
        if len(set(names)) != len(self.descriptors) or len(names) != len(self.descriptors):
            raise DriverError(f"{len(self.descriptors)} descriptors came with the names {names}")
        taken = dict(zip(names, self.descriptors, strict=True))
        self.descriptors = []
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        close_all(self.descriptors)


def close_all(descriptors: list[int]) -> None:
    """Close the descriptors and empty the list."""
    while descriptors:
        os.close(descriptors.pop())


def send_packet(connected: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one packet without waiting; the caller keeps its descriptors.

    Raises ``DriverError`` for a message that is too long, ``OSError`` when the peer is gone or reads nothing.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > PACKET_BYTES:
        raise DriverError(f"a message has {len(data)} bytes, more than {PACKET_BYTES}")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connected.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive_packet(connected: socket.socket) -> Packet | None:
    """The next packet; ``None`` when nothing has come.

    Raises ``EOFError`` when the peer is gone, ``DriverError`` for anything that is no packet.
    """
    how = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    try:
        data, ancillary, flags, _ = connected.recvmsg(PACKET_BYTES, _ANCILLARY_BYTES, how)
    except BlockingIOError:
        return None
    except ConnectionError as error:
        raise EOFError("the connection is broken") from error
    descriptors = _collect(ancillary)
    try:
        return Packet(_parse(data, flags, len(descriptors)), descriptors)
    except BaseException:
        close_all(descriptors)
        raise


def _collect(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return list(received)


def _parse(data: bytes, flags: int, descriptors: int) -> dict[str, Any]:
    if not data:
        raise EOFError("the peer closed the connection")
    if flags & socket.MSG_TRUNC:
        raise DriverError(f"a message has more than {PACKET_BYTES} bytes")
    if flags & socket.MSG_CTRUNC or descriptors > MAX_DESCRIPTORS:
        raise DriverError(f"a message came with more than {MAX_DESCRIPTORS} descriptors")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DriverError("a message is no JSON") from error
    if not isinstance(message, dict):
        raise DriverError("a message is no JSON object")
    return message
