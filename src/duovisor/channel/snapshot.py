"""A snapshot: all that a back end knows about its connection, so that another process can go on with it.

It is numbers and descriptors, the connection's own among them. A received one owns its descriptors; one that
``Session.capture`` made borrows those of the session. It travels over a SOCK_SEQPACKET socket, in as many
packets as its descriptors need, and nobody ever waits.

Each packet begins with the same header. The first one carries the bytes; each carries up to 250 descriptors
(the kernel allows 253). A packet comes whole or not at all, so a sender that dies leaves a snapshot behind
that is either complete or never was.
"""

from __future__ import annotations

import array
import os
import socket
from enum import IntEnum
from struct import Struct

from duovisor.channel.errors import ChannelError, PeerClosedError
from duovisor.channel.holdings import Holdings
from duovisor.channel.memory import MAX_MEMORY_SLOTS
from duovisor.channel.snapshot_payload import MAX_RINGS, build_payload, parse_payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.ring_state import RingState

MAGIC = b"duovsnp1"  # another form gets another number: a successor of other code must refuse it
PACKET_DESCRIPTORS = 250
MAX_PACKET_BYTES = 64 << 10
MAX_DESCRIPTORS = 4 + MAX_MEMORY_SLOTS + 4 * MAX_RINGS
_HEADER = Struct("=8sIIQI")  # magic, kind, part, serial, descriptors in all parts
_ANCILLARY_BYTES = socket.CMSG_SPACE((PACKET_DESCRIPTORS + 3) * 4)
# What a successor answers to a probe.
ANSWER = b"ready"


class Kind(IntEnum):
    """Why a snapshot is sent."""

    UPDATE = 0
    PROBE = 1
    """Answer as soon as you could go on from here."""
    FINAL = 2
    """Go on from here; the sender has let go."""


class Snapshot:
    """The state of one connection. ``serial`` says how new it is, ``final`` that its sender has let go."""

    __slots__ = (
        "connection", "device_state", "features", "final", "holdings", "probe", "protocol_features", "rings",
        "serial", "status",
    )  # fmt: skip

    def __init__(self, connection: int | None, holdings: Holdings, rings: list[RingState]) -> None:
        self.connection = connection
        self.holdings = holdings
        self.rings = rings
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.device_state = b""
        self.serial = 0
        self.final = False
        self.probe = False

    @property
    def descriptors(self) -> list[int]:
        """All descriptors: the connection, what is held, then those of each ring."""
        found = [] if self.connection is None else [self.connection]
        found += self.holdings.descriptors()
        for ring in self.rings:
            found += ring.descriptors()
        return found

    def close(self) -> None:
        """Close every descriptor of a received snapshot that nobody took."""
        for ring in self.rings:
            for descriptor in ring.descriptors():
                os.close(descriptor)
        self.rings = []
        self.holdings.close()
        if self.connection is not None:
            os.close(self.connection)
            self.connection = None


def send_snapshot(sock: socket.socket, snapshot: Snapshot, kind: Kind = Kind.UPDATE) -> None:
    """Send all of a snapshot at once; raises ``OSError`` when it does not fit or the peer is gone."""
    payload, descriptors = build_payload(snapshot), snapshot.descriptors
    for part, start in enumerate(range(0, len(descriptors), PACKET_DESCRIPTORS)):
        header = _HEADER.pack(MAGIC, kind, part, snapshot.serial, len(descriptors))
        rights = array.array("i", descriptors[start : start + PACKET_DESCRIPTORS])
        sock.sendmsg(
            [header, b"" if part else payload],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
            socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
        )


def receive_snapshot(sock: socket.socket) -> Snapshot | None:
    """The next snapshot, or ``None`` if there is no complete one; for a socket read only here and there.

    Raises ``PeerClosedError`` at the end of the stream and ``ChannelError`` for what is no snapshot.
    """
    receiver = SnapshotReceiver(sock)
    try:
        return receiver.receive()
    finally:
        receiver.close()


class SnapshotReceiver:
    """Receives from one socket, keeping the parts of a snapshot that is still arriving."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._payload = b""
        self._header = (0, 0, 0)  # kind, serial, descriptors expected
        self._descriptors: list[int] = []
        self._parts = 0

    def receive(self) -> Snapshot | None:
        """The next complete snapshot, or ``None`` as long as there is none; it never waits.

        Raises what ``receive_snapshot`` raises.
        """
        while True:
            data = self._receive_packet()
            if data is None:
                return None
            try:
                if self._add(data):
                    return self._finish()
            except ChannelError:
                self.close()
                raise

    def close(self) -> None:
        """Close the descriptors of an incomplete snapshot; the socket stays open."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self._parts = 0

    def _receive_packet(self) -> bytes | None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                MAX_PACKET_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._descriptors.extend(received)
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            self.close()
            raise ChannelError(
                "a snapshot was cut: too many bytes, or more descriptors than are allowed here"
            )
        if not data:
            self.close()
            raise PeerClosedError("the predecessor sends no more snapshots")
        return data

    def _add(self, data: bytes) -> bool:
        """Take in one packet; True when it was the last one of its snapshot."""
        if len(data) < _HEADER.size:
            raise ChannelError(f"a packet of {len(data)} bytes is no part of a snapshot")
        magic, kind, part, serial, expected = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ChannelError("what arrived is no snapshot of this version")
        if kind not in Kind.__members__.values() or expected > MAX_DESCRIPTORS or part != self._parts:
            raise ChannelError(f"part {part} of a snapshot of kind {kind} with {expected} descriptors")
        if part == 0:
            self._payload = data[_HEADER.size :]
            self._header = (kind, serial, expected)
        elif self._header != (kind, serial, expected) or len(data) != _HEADER.size:
            raise ChannelError(f"part {part} belongs to another snapshot")
        self._parts += 1
        if len(self._descriptors) != min(self._parts * PACKET_DESCRIPTORS, expected):
            raise ChannelError(f"a snapshot of {expected} descriptors came with {len(self._descriptors)}")
        complete: bool = len(self._descriptors) == expected
        return complete

    def _finish(self) -> Snapshot:
        kind, serial, _ = self._header
        snapshot = Snapshot(None, Holdings(), [])
        parse_payload(snapshot, self._payload, self._descriptors)
        self._descriptors = []
        self._parts = 0
        snapshot.serial = serial
        snapshot.final = kind == Kind.FINAL
        snapshot.probe = kind == Kind.PROBE
        return snapshot
