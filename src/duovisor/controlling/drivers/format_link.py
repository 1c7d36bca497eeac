"""The connection to the format process: the vhost-user set-up that shares the replay memory, then silence.

Whoever follows on the same connection (the spare of a driver that died) finds in the replay memory which
connection the ring belongs to, by the inode number of its socket, and goes on without a new set-up. If the
set-up was not complete, it begins again: its requests may be repeated, and a message is taken from the socket
only as a whole, so that no half of one is missing. Nothing here waits: answers are taken when they come.
"""

from __future__ import annotations

import os
import select
import socket

from duovisor.channel import features as bits
from duovisor.channel.connection import Connection, request_name
from duovisor.channel.errors import PeerClosedError, ProtocolError
from duovisor.channel.messages import (
    FLAG_REPLY,
    HEADER_BYTES,
    RegionDescription,
    Request,
    VringAddress,
    build_config,
    build_memory_table,
    build_u64,
    build_vring_address,
    build_vring_state,
    parse_config,
    parse_header,
    parse_u64,
)
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.replay_memory import (
    AVAILABLE_AT,
    CONNECTION_WORD,
    DESCRIPTORS_AT,
    PHASE_WORD,
    QUEUE_SIZE,
    USED_AT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from duovisor.controlling.drivers.format_ring import FormatRing
    from duovisor.controlling.drivers.replay_memory import ReplayMemory

    # A request to send and whether it has an answer; the answer comes back.
    Step = tuple[Request, bytes, tuple[int, ...], bool]
    SetUp = Generator[Step, bytes, None]

# What PHASE_WORD says of the connection that CONNECTION_WORD names.
PHASE_NONE, PHASE_REPLAYING, PHASE_SERVING = 0, 1, 2

ANSWERED = (Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_CONFIG)
MESSAGES_MAX = 64  # at once; a set-up has three answers, and one may have been begun more than once
_USER_START = 0x7F0000000000
_WRITING = layout.FEATURE_FLUSH | layout.FEATURE_DISCARD | layout.FEATURE_WRITE_ZEROES


class FormatLink:
    """At most one connection; ``descriptor`` is readable when there is something to do for the driver.

    ``size`` in bytes and ``read_only`` are what the format process must serve.
    """

    def __init__(self, memory: ReplayMemory, ring: FormatRing, size: int, *, read_only: bool) -> None:
        self._memory = memory
        self._ring = ring
        self._size = size
        self._read_only = read_only
        self._poller = select.epoll()
        self.descriptor = self._poller.fileno()
        self._poller.register(ring.call_descriptor, select.EPOLLIN | select.EPOLLET)
        self._offered: int | None = None
        self._connection: Connection | None = None
        self._set_up: SetUp | None = None
        self._awaited = Request.GET_FEATURES

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, set up or not."""
        return self._connection is not None

    def offer(self, descriptor: int) -> None:
        """Take a connected socket over, to be used by the next ``begin``."""
        if self._offered is not None:
            os.close(self._offered)
        self._offered = descriptor

    def begin(self) -> bool:
        """Use the offered socket, if there is one; True when the ring on it is a predecessor's.

        Raises ``ProtocolError``, ``PeerClosedError`` or ``DriverError`` when it cannot be used.
        """
        descriptor, self._offered = self._offered, None
        if descriptor is None:
            return False
        try:
            connected = socket.socket(fileno=descriptor)
        except OSError as error:
            raise DriverError(f"descriptor {descriptor} is no socket: {error.strerror}") from error
        self._connection = Connection(connected)
        self._poller.register(connected, select.EPOLLIN)
        words, inode = self._memory.words, os.fstat(descriptor).st_ino
        if words[CONNECTION_WORD] == inode and words[PHASE_WORD] in (PHASE_REPLAYING, PHASE_SERVING):
            self._send_event_descriptors(self._connection)
            return True
        words[PHASE_WORD] = PHASE_NONE
        words[CONNECTION_WORD] = inode
        self._ring.reset()
        self._set_up = self._run_set_up()
        self._step(next(self._set_up))
        return False

    def advance(self) -> bool:
        """See what came on the connection; True when the set-up is complete with it.

        Raises as ``begin``.
        """
        is_set_up = False
        for descriptor, _ in self._poller.poll(0):
            connection = self._connection
            if descriptor == self._ring.call_descriptor or connection is None:
                continue
            for _ in range(MESSAGES_MAX):
                message = take_message(connection.socket)
                if message is None:
                    break
                is_set_up = self._use(*message) or is_set_up
            else:
                raise ProtocolError("the format process talks without end")
        return is_set_up

    def lose(self) -> None:
        """Close the connection; its ring is worth nothing any more."""
        self._memory.words[PHASE_WORD] = PHASE_NONE
        if self._connection is not None:
            self._poller.unregister(self._connection.fileno())
            self._connection.close()
        self._connection = self._set_up = None

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is something to do; False when nothing came."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        return bool(poller.poll(max(timeout_s, 0) * 1000))

    def close(self) -> None:
        """Close everything; a connection that others hold as well stays as it is."""
        if self._offered is not None:
            os.close(self._offered)
        if self._connection is not None:
            self._connection.close()
        self._poller.close()

    def _use(self, request: int, payload: bytes) -> bool:
        """Use an answer; one to a predecessor's question may come first, or be left over."""
        if request not in ANSWERED:
            raise ProtocolError(f"the format process says {request_name(request)} unasked")
        if self._set_up is None or request != self._awaited:
            return False
        try:
            self._step(self._set_up.send(payload))
        except StopIteration:
            self._set_up = None
            return True
        return False

    def _step(self, step: Step) -> None:
        """Send requests up to the next one that has an answer."""
        assert self._connection is not None
        assert self._set_up is not None
        while True:
            request, payload, descriptors, has_answer = step
            self._connection.send(request, payload, 0, descriptors)
            if has_answer:
                self._awaited = request
                return
            step = next(self._set_up)

    def _run_set_up(self) -> SetUp:
        yield Request.SET_OWNER, b"", (), False
        offered = parse_u64((yield Request.GET_FEATURES, b"", (), True))
        wanted = bits.VERSION_1 | bits.PROTOCOL_FEATURES | (0 if self._read_only else _WRITING)
        if wanted & ~offered:
            raise ProtocolError(f"the format process lacks the features {wanted & ~offered:#x}")
        if offered & layout.FEATURE_READ_ONLY and not self._read_only:
            raise ProtocolError("the format process serves its image for reading only")
        available = parse_u64((yield Request.GET_PROTOCOL_FEATURES, b"", (), True))
        if not available & bits.PROTOCOL_CONFIG:
            raise ProtocolError("the format process does not tell the size of its image")
        yield Request.SET_PROTOCOL_FEATURES, build_u64(bits.PROTOCOL_CONFIG), (), False
        size = parse_capacity((yield Request.GET_CONFIG, build_config(0, 0, bytes(8)), (), True))
        if size != self._size:
            raise ProtocolError(f"the format process serves {size} bytes; the disk has {self._size}")
        yield Request.SET_FEATURES, build_u64(wanted), (), False
        memory = RegionDescription(0, len(self._memory.view), _USER_START, 0)
        yield Request.SET_MEM_TABLE, build_memory_table([memory]), (self._memory.descriptor,), False
        yield Request.SET_VRING_NUM, build_vring_state(0, QUEUE_SIZE), (), False
        yield Request.SET_VRING_BASE, build_vring_state(0, 0), (), False
        address = VringAddress(
            0, 0, _USER_START + DESCRIPTORS_AT, _USER_START + USED_AT, _USER_START + AVAILABLE_AT, 0
        )
        yield Request.SET_VRING_ADDR, build_vring_address(address), (), False
        yield Request.SET_VRING_CALL, build_u64(0), (self._ring.call_descriptor,), False
        yield Request.SET_VRING_KICK, build_u64(0), (self._ring.kick_descriptor,), False
        yield Request.SET_VRING_ENABLE, build_vring_state(0, 1), (), False

    def _send_event_descriptors(self, connection: Connection) -> None:
        """Put our eventfds in the place of the predecessor's, and make both sides look."""
        connection.send(Request.SET_VRING_CALL, build_u64(0), 0, (self._ring.call_descriptor,))
        connection.send(Request.SET_VRING_KICK, build_u64(0), 0, (self._ring.kick_descriptor,))
        self._ring.kick()


def take_message(connected: socket.socket) -> tuple[int, bytes] | None:
    """The next message that has come as a whole: request number and payload.

    Raises ``PeerClosedError`` at the end and ``ProtocolError`` for what is no answer.
    """
    try:
        head = connected.recv(HEADER_BYTES, socket.MSG_PEEK)
        if len(head) == HEADER_BYTES:
            request, flags, size = parse_header(head)
            if not flags & FLAG_REPLY:
                raise ProtocolError(f"the format process asks {request_name(request)}")
            data = connected.recv(HEADER_BYTES + size, socket.MSG_PEEK)
            if len(data) == HEADER_BYTES + size:
                return request, connected.recv(HEADER_BYTES + size)[HEADER_BYTES:]
    except BlockingIOError:
        return None
    except OSError as error:
        raise ProtocolError(f"the connection failed: {error.strerror}") from error
    if not head:
        raise PeerClosedError("the format process closed the connection")
    return None


def parse_capacity(payload: bytes) -> int:
    """Bytes of the disk, from the answer to GET_CONFIG for the first 8 bytes; raises ``ProtocolError``."""
    data = parse_config(payload)[2]
    if len(data) != 8:
        raise ProtocolError("the format process does not tell the size of its image")
    return int.from_bytes(data, "little") << layout.SECTOR_SHIFT


def ask_capacity(connected: socket.socket, timeout_s: float) -> int:
    """Ask a format process for the size of its disk in bytes, waiting until it serves; closes the socket.

    Raises ``ProtocolError``, or ``PeerClosedError`` when it ends instead.
    """
    connection = Connection(connected)
    try:
        for request in (Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES):
            connection.send(request)
            connection.wait(timeout_s).close()
        connection.send(Request.SET_PROTOCOL_FEATURES, build_u64(bits.PROTOCOL_CONFIG))
        connection.send(Request.GET_CONFIG, build_config(0, 0, bytes(8)))
        return parse_capacity(connection.wait(timeout_s).payload)
    finally:
        connection.close()
