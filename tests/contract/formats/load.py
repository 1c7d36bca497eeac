"""Random work on a disk, checked against a reference in memory; ranges in flight never overlap."""

from __future__ import annotations

import random
import time
from itertools import groupby
from typing import TYPE_CHECKING

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import NO_STATUS, BlockClient, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from duovisor.channel.frontend import FrontEnd

IN, OUT, FLUSH = layout.REQUEST_IN, layout.REQUEST_OUT, layout.REQUEST_FLUSH
DISCARD, ZEROES = layout.REQUEST_DISCARD, layout.REQUEST_WRITE_ZEROES
SECTOR = layout.SECTOR_BYTES
RANGE_SECTORS = (1, 9, 128, 1000)

# what is prepared, and how many of each: the depth of the queue
PREPARED = (
    (OUT, 512, 4), (OUT, 4096, 8), (OUT, 20480, 4), (OUT, 70144, 3), (OUT, 1536 << 10, 1),
    (IN, 4096, 4), (IN, 200704, 2), (FLUSH, 0, 1), (DISCARD, 16, 2), (ZEROES, 16, 3),
)  # fmt: skip


class Job:
    """A prepared request, and where it works while it is in flight (in sectors)."""

    def __init__(self, kind: int, slot: Slot) -> None:
        self.kind = kind
        self.slot = slot
        self.start = self.end = 0
        self.expected: bytes | None = None


class Load:
    """Keeps requests in flight; ``content`` is what the disk must hold, but where ``undefined`` says so."""

    def __init__(self, front: FrontEnd, size: int, seed: int, content: bytes | None = None) -> None:
        self.source = random.Random(seed)
        self.client = BlockClient(front)
        self.content = bytearray(content or bytes(size))
        self.undefined = bytearray(size // SECTOR)
        self.idle = [
            Job(kind, self.client.make_slot(kind, length))
            for kind, length, count in PREPARED
            for _ in range(count)
        ]
        self.flying: dict[int, Job] = {}
        self.number = 0
        self.done = 0
        self.compared = 0

    def run(self, seconds: float, at_least: int = 0) -> None:
        """Work for a while, leaving requests in flight; and until ``at_least`` were answered in all."""
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or self.done < at_least:
            assert time.perf_counter() < deadline + 120, f"{self.done} of {at_least} requests were answered"
            self.submit()
            self.collect()

    def finish(self, timeout_s: float = 120.0) -> None:
        """Wait until nothing is in flight; then make what is undefined zeros, and flush."""
        deadline = time.perf_counter() + timeout_s
        while self.flying:
            assert self.collect() or time.perf_counter() < deadline, f"{len(self.flying)} requests were lost"
        zero = self.client.make_slot(ZEROES, 16)
        for undefined, run in groupby(range(len(self.undefined)), key=self.undefined.__getitem__):
            sectors = list(run)
            if undefined:
                layout.RANGE.pack_into(zero.data, 0, sectors[0], len(sectors), 0)
                assert self.client.run(zero) == layout.STATUS_OK
                start, end = sectors[0] * SECTOR, (sectors[-1] + 1) * SECTOR
                self.content[start:end] = bytes(end - start)
        self.client.flush()

    def submit(self) -> None:
        """Put idle requests into flight."""
        self.source.shuffle(self.idle)
        for job in self.idle[: self.source.randrange(8)]:
            if self._aim(job):
                self.idle.remove(job)
                self.flying[job.slot.head] = job
                self.client.submit(job.slot, 0 if job.kind in (DISCARD, ZEROES) else job.start)
        self.client.queue.kick()

    def collect(self) -> int:
        """Take what was answered; a head that is not in flight is a duplicate."""
        reaped = self.client.queue.reap()
        for head, _ in reaped:
            job = self.flying.pop(head)
            assert job.slot.status[0] == layout.STATUS_OK, (job.kind, job.start, job.slot.status[0])
            job.slot.status[0] = NO_STATUS
            self._settle(job)
            self.idle.append(job)
        self.done += len(reaped)
        return len(reaped)

    def save(self, path: Path) -> None:
        path.write_bytes(self.content)

    def _aim(self, job: Job) -> bool:
        if job.kind == FLUSH:
            return True
        is_range = job.kind in (DISCARD, ZEROES)
        count = self.source.choice(RANGE_SECTORS) if is_range else len(job.slot.data) // SECTOR
        start = self.source.randrange(len(self.undefined) - count)
        if self.source.random() < 0.5:
            start = start // 128 * 128  # whole clusters now and then
        job.start, job.end = start, start + count
        if any(job.start < other.end and other.start < job.end for other in self.flying.values()):
            job.start = job.end = 0
            return False
        if is_range:
            flags = layout.UNMAP if job.kind == ZEROES and self.source.random() < 0.5 else 0
            layout.RANGE.pack_into(job.slot.data, 0, start, count, flags)
        elif job.kind == OUT:
            self.number += 1
            job.slot.data[:] = (b"%07d," % self.number) * (len(job.slot.data) // 8)
        return True

    def _settle(self, job: Job) -> None:
        start, end = job.start * SECTOR, job.end * SECTOR
        if job.kind == IN:
            self._compare(job, bytes(job.slot.data))
        elif job.kind != FLUSH:
            self.undefined[job.start : job.end] = (b"\1" if job.kind == DISCARD else b"\0") * (
                job.end - job.start
            )
            self.content[start:end] = job.slot.data if job.kind == OUT else bytes(end - start)
        job.start = job.end = 0

    def _compare(self, job: Job, data: bytes) -> None:
        start, end = job.start * SECTOR, job.end * SECTOR
        if data == self.content[start:end]:
            self.compared += 1
            return
        for sector in _known(range(job.start, job.end), self.undefined):
            part = data[(sector - job.start) * SECTOR :][:SECTOR]
            assert part == self.content[sector * SECTOR : (sector + 1) * SECTOR], f"sector {sector}"


def _known(sectors: range, undefined: bytearray) -> Iterable[int]:
    return (sector for sector in sectors if not undefined[sector])
