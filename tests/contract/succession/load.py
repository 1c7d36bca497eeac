"""Requests against a disk, checked one by one against the same disk in memory."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import NO_STATUS, BlockClient, Slot

if TYPE_CHECKING:
    import random

    from duovisor.channel.frontend import FrontEnd


class Flight:
    """A request on its way, at ``offset`` bytes."""

    __slots__ = ("kind", "offset", "slot")

    def __init__(self, slot: Slot, kind: int, offset: int) -> None:
        self.slot = slot
        self.kind = kind
        self.offset = offset


class Load:
    """Reads, writes and flushes of one block on one queue, never two of a block at the same time."""

    def __init__(
        self, front: FrontEnd, queue: int, reference: bytearray, blocks: range, length: int, depth: int
    ) -> None:
        self.client = BlockClient(front, queue)
        self.reference = reference
        self.length = length
        self.free = list(blocks)
        kinds = [(layout.REQUEST_OUT, layout.REQUEST_IN, layout.REQUEST_OUT)[at % 3] for at in range(depth)]
        if depth > 3:
            kinds[-1] = layout.REQUEST_FLUSH
        self.idle = [
            (self.client.make_slot(kind, 0 if kind == layout.REQUEST_FLUSH else length), kind)
            for kind in kinds
        ]
        self.flying: dict[int, Flight] = {}
        self.done = 0
        self.number = 0

    def submit(self, source: random.Random, at_most: int = 1 << 30) -> None:
        """Put idle requests into flight."""
        for _ in range(min(at_most, len(self.idle))):
            slot, kind = self.idle.pop(source.randrange(len(self.idle)))
            block = self.free.pop(source.randrange(len(self.free)))
            offset = block * self.length
            self.number += 1
            if kind == layout.REQUEST_OUT:
                slot.data[:] = b"%08d%08d" % (block, self.number) * (self.length // 16)
            elif kind == layout.REQUEST_IN:
                slot.data[:] = bytes(self.length)
            self.flying[slot.head] = Flight(slot, kind, offset)
            self.client.submit(slot, offset // 512)
        self.client.queue.kick()

    def collect(self) -> int:
        """Take what was answered: each request once, with the right data."""
        reaped = self.client.queue.reap()
        for head, _ in reaped:
            assert head in self.flying, f"request {head} was answered twice"
            flight = self.flying.pop(head)
            slot, place = flight.slot, slice(flight.offset, flight.offset + self.length)
            assert slot.status[0] == layout.STATUS_OK
            slot.status[0] = NO_STATUS
            if flight.kind == layout.REQUEST_OUT:
                self.reference[place] = slot.data
            elif flight.kind == layout.REQUEST_IN:
                assert slot.data == self.reference[place], f"wrong data at {flight.offset}"
            self.free.append(flight.offset // self.length)
            self.idle.append((slot, flight.kind))
        self.done += len(reaped)
        return len(reaped)


def wait_for_answers(loads: list[Load], death: int = -1, timeout_s: float = 60.0) -> None:
    """Sleep until a queue has answers, and collect them.

    Only a signal of the driver ends the sleep, or that ``death``, a pidfd, is readable.
    """
    if not any([load.client.queue.enable_interrupts() for load in loads]):
        calls = [load.client.queue.call_descriptor for load in loads]
        called = select.select([*calls, *([death] if death >= 0 else [])], [], [], timeout_s)[0]
        if not called:
            flying = {load.client.queue.index: sorted(load.flying) for load in loads}
            raise AssertionError(f"no answers any more; in flight are {flying}")
        for descriptor in set(calls) & set(called):
            os.eventfd_read(descriptor)
    for load in loads:
        load.collect()


def finish(loads: list[Load]) -> None:
    """Wait for every answer."""
    while waiting := [load for load in loads if load.flying]:
        wait_for_answers(waiting)
