"""One end of a vhost-user socket: whole messages in, whole messages out, with their descriptors.

Receiving never blocks, so that a peer which stops half-way through a message holds up nothing else.
A received descriptor has an owner at every moment: the ``Message`` closes what nobody took.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time

from duovisor.channel.errors import PeerClosedError, ProtocolError
from duovisor.channel.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER_BYTES,
    MAX_DESCRIPTORS,
    Request,
    build_header,
    build_u64,
    parse_header,
)

# One more than allowed: the kernel then delivers a surplus descriptor, and we see and close it.
_ANCILLARY_BYTES = socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * 4)


def request_name(number: int) -> str:
    """The specification's name of a request, or its number where there is none."""
    try:
        return Request(number).name
    except ValueError:
        return f"request {number}"


class Message:
    """A received message; it owns its descriptors until they are taken."""

    __slots__ = ("descriptors", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, descriptors: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.descriptors = descriptors

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    def expect_descriptors(self, count: int) -> None:
        """Raise ``ProtocolError`` unless exactly ``count`` descriptors came with the message."""
        if len(self.descriptors) != count:
            raise ProtocolError(
                f"{request_name(self.request)} came with {len(self.descriptors)} descriptors, not {count}"
            )

    def take_descriptor(self) -> int:
        """Hand over the one descriptor of this message; the caller closes it."""
        self.expect_descriptors(1)
        return self.descriptors.pop()

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class Connection:
    """A connected vhost-user socket, of either side."""

    __slots__ = ("_buffer", "_descriptors", "_header", "socket")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.socket = connected
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self._header: tuple[int, int, int] | None = None

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def incomplete(self) -> bool:
        """Whether part of a message was read, so that nobody else can read the rest."""
        return bool(self._buffer) or self._header is not None

    def shut_down(self) -> None:
        """End the connection for every process that holds it; ``close`` lets go of it for this one only."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def close(self) -> None:
        self._close_descriptors()
        self.socket.close()

    def receive(self) -> Message | None:
        """The next message, or ``None`` while it is incomplete.

        Raises ``PeerClosedError`` at the end of the stream and ``ProtocolError`` for a malformed or cut
        message.
        """
        try:
            while True:
                if self._header is None:
                    if not self._fill(HEADER_BYTES):
                        return None
                    self._header = parse_header(bytes(self._buffer))
                    self._buffer.clear()
                request, flags, size = self._header
                if not self._fill(size):
                    return None
                message = Message(request, flags, bytes(self._buffer), self._descriptors)
                self._buffer.clear()
                self._header = None
                self._descriptors = []
                return message
        except ProtocolError:
            self._close_descriptors()
            raise

    def wait(self, timeout_s: float) -> Message:
        """The next message within ``timeout_s`` seconds; raises what ``receive`` raises."""
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        deadline = time.monotonic() + timeout_s  # of the whole message: a peer may send it byte by byte
        while (message := self.receive()) is None:
            if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise ProtocolError(f"the peer did not answer within {timeout_s:g} s")
        return message

    def send(
        self, request: int, payload: bytes = b"", flags: int = 0, descriptors: tuple[int, ...] = ()
    ) -> None:
        """Send one message; raises ``PeerClosedError``, or ``ProtocolError`` when the peer reads nothing."""
        data = build_header(request, flags, len(payload)) + payload
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        try:
            sent = self.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerClosedError("the peer closed the connection") from error
        except OSError as error:  # such as ETOOMANYREFS: it leaves our descriptors unread in its socket
            raise ProtocolError(f"the peer cannot be answered: {error.strerror}") from error
        if sent != len(data):
            raise ProtocolError("the peer does not read its messages")

    def reply(self, message: Message, payload: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Answer a message with its own kind of payload."""
        self.send(message.request, payload, FLAG_REPLY, descriptors)

    def acknowledge(self, message: Message, *, success: bool) -> None:
        """Answer a message that asked for an acknowledgement (REPLY_ACK): zero is success."""
        self.reply(message, build_u64(0 if success else 1))

    def _fill(self, wanted: int) -> bool:
        """Read until the buffer holds ``wanted`` bytes; False when the peer has not sent them yet."""
        while len(self._buffer) < wanted:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    wanted - len(self._buffer), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except ConnectionResetError:
                data, ancillary, flags = b"", [], 0
            except OSError as error:
                raise ProtocolError(f"the connection failed: {error.strerror}") from error
            self._collect(ancillary)
            if len(self._descriptors) > MAX_DESCRIPTORS:
                raise ProtocolError(f"a message came with more than {MAX_DESCRIPTORS} descriptors")
            if flags & socket.MSG_CTRUNC:  # too many for the buffer, or for this process
                raise ProtocolError("not all descriptors of a message could be received")
            if not data:
                if self._buffer or self._header is not None:
                    raise ProtocolError("the peer closed the connection in the middle of a message")
                raise PeerClosedError("the peer closed the connection")
            self._buffer += data
        return True

    def _collect(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._descriptors.extend(received)

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
