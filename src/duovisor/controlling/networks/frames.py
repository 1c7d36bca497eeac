"""A TAP's queue from the host's side: frames that wait are read, or others put behind them.

A frame is bytes: the kernel's header of 10 bytes (checksum, segmentation), and the frame behind it, whatever
the size of the header that the TAP's reader has chosen. Sources: Linux tuntap.rst, packet(7).
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from duovisor.controlling.networks import interfaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Buffer = memoryview | bytearray

HEADER_BYTES = 10  # struct virtio_net_hdr
QUEUE_MAX = 4096  # so many are read at once at most; a TAP's queue has 1000 unless somebody has set more
_BUFFER_BYTES = HEADER_BYTES + (1 << 16) + 4096
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15


class FrameQueue:
    """The frames that wait in a TAP; its descriptor stays the caller's. Raises ``OSError``."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.name = interfaces.read_tap_name(descriptor)
        self.index = socket.if_nametoindex(self.name)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it receives nothing
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            self._socket.bind((self.name, 0))
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return not poll.poll(0)

    def read(self) -> Iterator[bytes]:
        """Take the frames that wait, oldest first."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        more = bytearray(interfaces.read_header_bytes(self.descriptor) - HEADER_BYTES)
        pieces: list[Buffer] = [buffer[:HEADER_BYTES], more, buffer[HEADER_BYTES:]]
        for _ in range(QUEUE_MAX):
            try:
                size = os.readv(self.descriptor, pieces)
            except BlockingIOError:
                return
            yield bytes(buffer[: size - len(more)])

    def discard(self) -> None:
        """Throw away the frames that wait."""
        for _ in self.read():
            pass

    def put(self, frames: Iterable[bytes]) -> tuple[int, int]:
        """Let frames wait, too; how many do, and how many the kernel refuses, as when the queue is full."""
        done = refused = 0
        for frame in frames:
            try:
                self._socket.send(frame)
                done += 1
            except OSError:
                refused += 1
        return done, refused

    def close(self) -> None:
        """Close what frames are put through."""
        self._socket.close()


def is_for_group(frame: bytes) -> bool:
    """Whether a frame is a broadcast or multicast, which a bridge gives to every port."""
    return bool(frame[HEADER_BYTES] & 1)
