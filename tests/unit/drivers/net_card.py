"""A guest with a network card, as the front end sees it; and a wire in the place of its TAP."""

from __future__ import annotations

import socket
import struct
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.unit.channel.echo_device import RunningBackend

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.net_layout import HEADER_BYTES, RECEIVE, TRANSMIT
from duovisor.controlling.drivers.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.channel.device import VirtioDevice

MAC = bytes.fromhex("525400123456")
PEER = bytes.fromhex("020000000001")
NO_OFFLOAD = bytes(HEADER_BYTES)
PLAIN = (1 << 32) | (1 << 28) | (1 << 29) | (1 << 30)  # nothing of virtio-net's own
TIMEOUT_S = 60.0


class Wire(Tap):
    """Frames with their headers over a socket that keeps them apart; ``end`` is the host's."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (ours, self.end):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        self.end.settimeout(TIMEOUT_S)
        super().__init__(ours.detach())
        self.settings: list[tuple[int, int]] = []

    def set_offloads(self, offloads: int, header_bytes: int) -> None:
        self.settings.append((offloads, header_bytes))


def build_frame(payload: bytes, *, source: bytes = MAC, target: bytes = PEER) -> bytes:
    """An Ethernet frame of a type that nobody listens to."""
    return target + source + struct.pack(">H", 0x88B5) + payload


class Card:
    """A guest's card: ``send`` and ``receive`` frames; the buffers have ``buffer_bytes`` each."""

    def __init__(
        self,
        device: VirtioDevice,
        *,
        buffers: int = 64,
        buffer_bytes: int = 1536,
        features: int = (1 << 64) - 1,
    ) -> None:
        self.backend = RunningBackend(device)
        self.front = FrontEnd(queues=2, queue_size=256, features=features & ~(1 << 26))
        self.front.connect(self.backend.peer)
        self.buffer_bytes = buffer_bytes
        self._views: dict[int, memoryview] = {}
        self._got: list[tuple[int, int]] = []
        self.post(buffers)

    def post(self, count: int) -> None:
        """Give the device so many empty buffers."""
        queue = self.front.queues[RECEIVE]
        for _ in range(count):
            address, view = self.front.allocate(self.buffer_bytes)
            head = queue.prepare([], [(address, self.buffer_bytes)])
            self._views[head] = view
            queue.submit(head)
        queue.kick()

    def submit(self, pieces: Sequence[bytes]) -> None:
        """Send something in pieces, whatever it is."""
        queue, places = self.front.queues[TRANSMIT], []
        for piece in pieces:
            address, view = self.front.allocate(len(piece))
            view[:] = piece
            places.append((address, len(piece)))
        table = self.front.allocate(16 * len(places)) if len(places) > 1 else None
        queue.submit(queue.prepare(places, [], table))
        queue.kick()

    def send(self, frame: bytes, *, header: bytes = NO_OFFLOAD, cut_at: Sequence[int] = ()) -> None:
        """Send a frame, in pieces that begin at these bytes of header and frame; wait until it is gone."""
        whole = header + frame
        cuts = [0, *cut_at, len(whole)]
        self.submit([whole[start:end] for start, end in pairwise(cuts)])
        self.wait_sent()

    def wait_sent(self, count: int = 1) -> None:
        """Wait until so many requests to send are done."""
        done = 0
        while done < count:
            for head, written in self.front.queues[TRANSMIT].wait(TIMEOUT_S):
                assert written == 0
                self.front.queues[TRANSMIT].release(head)
                done += 1

    def receive(self) -> tuple[bytes, bytes, int]:
        """The next frame: header, frame, and over how many buffers it extended; these are posted again."""
        used = [self._next()]
        view, size = self._views[used[0][0]], used[0][1]
        assert size >= HEADER_BYTES
        count = int(view[10]) | int(view[11]) << 8
        used += [self._next() for _ in range(count - 1)]
        whole = b"".join(bytes(self._views[head][:written]) for head, written in used)
        queue = self.front.queues[RECEIVE]
        for head, _ in used:
            queue.submit(head)
        queue.kick()
        return whole[:HEADER_BYTES], whole[HEADER_BYTES:], count

    def _next(self) -> tuple[int, int]:
        if not self._got:
            self._got = self.front.queues[RECEIVE].wait(TIMEOUT_S)
        return self._got.pop(0)

    def count(self, name: str) -> object:
        """One of the device's counters."""
        return self.backend.device.statistics()[name]

    def wait_count(self, name: str, value: int) -> None:
        """Wait until a counter has this value."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.count(name) != value and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self.count(name) == value

    def close(self) -> None:
        """End the back end, which must have found nothing wrong."""
        self.front.close()
        assert self.backend.close() is None


def make_card(*, mac: bytes | None = MAC, **settings: int) -> tuple[Card, Wire]:
    """A card on a wire."""
    wire = Wire()
    return Card(NetDevice(wire, mac=mac), **settings), wire
