"""A format process that does each step when the test says so, on a disk in memory."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from duovisor.channel import features as bits
from duovisor.channel.chain import DESCRIPTOR
from duovisor.channel.connection import Connection
from duovisor.channel.errors import PeerClosedError
from duovisor.channel.messages import Request, build_config, build_u64
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.replay_memory import (
    AVAILABLE_AT,
    DESCRIPTORS_AT,
    QUEUE_SIZE,
    SLOT_BYTES,
    SLOTS,
    SLOTS_AT,
    USED_AT,
    ReplayMemory,
)

STATUS_AT = 32
FEATURES = (
    bits.VERSION_1 | bits.PROTOCOL_FEATURES | layout.FEATURE_FLUSH | layout.FEATURE_DISCARD
    | layout.FEATURE_WRITE_ZEROES
)  # fmt: skip


class Ordered(NamedTuple):
    """A request that was taken from the ring."""

    slot: int
    kind: int
    offset: int
    data_at: int
    length: int


class RingServer:
    """The format process's side of the ring, without checks."""

    def __init__(self, memory: ReplayMemory) -> None:
        self.memory = memory
        self.taken = 0
        self.answered = 0

    def take(self) -> list[Ordered]:
        """What was made available since the last time."""
        view = self.memory.view
        halves = view[AVAILABLE_AT : AVAILABLE_AT + 6 + 2 * QUEUE_SIZE].cast("H")
        found = []
        while self.taken & 0xFFFF != halves[1]:
            head = halves[2 + self.taken % QUEUE_SIZE]
            header_at, _, _, following = DESCRIPTOR.unpack_from(view, DESCRIPTORS_AT + 16 * head)
            kind, _, sector = layout.REQUEST_HEADER.unpack_from(view, header_at)
            data_at, length, _, _ = DESCRIPTOR.unpack_from(view, DESCRIPTORS_AT + 16 * following)
            found.append(Ordered(head // 3, kind, sector * 512, data_at, length))
            self.taken += 1
        return found

    def answer(self, descriptor: int, status: int = 0) -> None:
        """Write the status where a slot has it, the used element, and the used index."""
        if descriptor // 3 < SLOTS:
            self.memory.view[SLOTS_AT + descriptor // 3 * SLOT_BYTES + STATUS_AT] = status
        words = self.memory.view[USED_AT : USED_AT + 4 + 8 * QUEUE_SIZE].cast("I")
        words[1 + 2 * (self.answered % QUEUE_SIZE)] = descriptor
        self.answered += 1
        self.memory.view[USED_AT : USED_AT + 4].cast("H")[1] = self.answered & 0xFFFF


class FakeFormatProcess(RingServer):
    """``disk`` is what it has executed; a driver connects to ``give_connection()``."""

    def __init__(
        self, memory: ReplayMemory, disk: bytearray, *, features: int = FEATURES, sectors: int | None = None
    ) -> None:
        super().__init__(memory)
        self.disk = disk
        self.features = features
        self.sectors = len(disk) // 512 if sectors is None else sectors
        self.drivers, ours = socket.socketpair()
        self.connection = Connection(ours)
        self.asked: list[int] = []

    def give_connection(self) -> int:
        """A descriptor for a driver, which takes it over; all are the same connection."""
        return os.dup(self.drivers.fileno())

    def talk(self) -> None:
        """Answer the messages that have come."""
        while True:
            try:
                message = self.connection.receive()
            except PeerClosedError:
                return
            if message is None:
                return
            self.asked.append(message.request)
            if message.request == Request.GET_FEATURES:
                self.connection.reply(message, build_u64(self.features))
            elif message.request == Request.GET_PROTOCOL_FEATURES:
                self.connection.reply(message, build_u64(bits.PROTOCOL_CONFIG | bits.PROTOCOL_REPLY_ACK))
            elif message.request == Request.GET_CONFIG:
                self.connection.reply(message, build_config(0, 0, self.sectors.to_bytes(8, "little")))
            message.close()

    def execute(self, ordered: Ordered, status: int = 0) -> None:
        """Do a request on the disk and answer it."""
        view, offset = self.memory.view, ordered.offset
        if ordered.kind == layout.REQUEST_OUT and not status:
            data = view[ordered.data_at : ordered.data_at + ordered.length]
            self.disk[offset : offset + ordered.length] = data
        elif ordered.kind == layout.REQUEST_IN and not status:
            data = memoryview(self.disk)[offset : offset + ordered.length]
            view[ordered.data_at : ordered.data_at + ordered.length] = data
        elif ordered.kind in (layout.REQUEST_DISCARD, layout.REQUEST_WRITE_ZEROES) and not status:
            sector, count, _ = layout.RANGE.unpack_from(view, ordered.data_at)
            self.disk[sector * 512 : (sector + count) * 512] = bytes(count * 512)
        self.answer(3 * ordered.slot, status)

    def die(self) -> None:
        """Close the connection, as the kernel does for a process that was killed."""
        self.connection.close()
        self.drivers.close()
