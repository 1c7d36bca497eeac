"""A front end that is faster than any driver: what it does is vectorised over all requests that are ready.

Requests are prepared once. A turn takes the heads of all finished requests from the used ring with one slice,
puts as many others into the available ring with another, and kicks once. Neither waits for a request to be
looked at: statuses and data are checked after the clock has stopped.
"""

from __future__ import annotations

import random
import time
from array import array
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import BlockClient

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.channel.frontend import FrontEnd
    from duovisor.controlling.drivers.block_client import Slot

QUEUE_SIZE = 256
SETTLE_S = 0.2  # before the clock starts: threads exist, memory is mapped, polling has found its window


class Job(NamedTuple):
    """What is kept in flight. ``polls``: the front end looks on without pause, else it sleeps when idle."""

    name: str
    kind: int
    length: int
    depth: int
    polls: bool


JOBS = (
    Job("read_4k_qd1", layout.REQUEST_IN, 4096, 1, True),
    Job("read_4k_qd32", layout.REQUEST_IN, 4096, 32, True),
    Job("write_4k_qd32", layout.REQUEST_OUT, 4096, 32, True),
    # a guest's processor has nothing to do for most of this one, so it is free to copy
    Job("read_1m", layout.REQUEST_IN, 1 << 20, 4, False),
)


class Figure(NamedTuple):
    """One measurement. ``waiting`` is the share of the time in which the front end had nothing to do."""

    iops: float
    cpu_us_per_io: float
    waiting: float


def fill_image(path: Path, size: int) -> None:
    """Write a pattern in which each sector begins with its own number; it stays in the page cache."""
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            sectors = range(start // 512, (start + (1 << 20)) // 512)
            file.write(b"".join(sector.to_bytes(8, "little") * 64 for sector in sectors))


class Load:
    """The requests of one job on queue 0 of a front end."""

    def __init__(self, front_end: FrontEnd, job: Job, image_bytes: int) -> None:
        self.job = job
        self.queue = front_end.queues[0]
        client = BlockClient(front_end)
        count = max(2 * job.depth, min(QUEUE_SIZE // 4, (8 << 20) // job.length))
        self.slots = [client.make_slot(job.kind, job.length) for _ in range(count)]
        pick = random.Random(1)
        for slot in self.slots:
            sector = pick.randrange(image_bytes // job.length) * (job.length // 512)
            layout.REQUEST_HEADER.pack_into(slot.header, 0, job.kind, 0, sector)
            if job.kind == layout.REQUEST_OUT:
                slot.data[:] = b"".join(
                    number.to_bytes(8, "little") * 64 for number in range(sector, sector + job.length // 512)
                )
        self._idle = array("H", [slot.head for slot in self.slots])

    def run(self, seconds: float, process_clock: int) -> Figure:
        """Keep the job's depth in flight for ``seconds``; ``process_clock`` is the driver's CPU clock."""
        for slot in self.slots:
            slot.status[0] = 0xFF
        self._submit(self.job.depth)
        self._turn_until(time.perf_counter() + SETTLE_S)
        cpu, started = time.clock_gettime_ns(process_clock), time.perf_counter()
        done, waited = self._turn_until(started + seconds)
        elapsed = time.perf_counter() - started
        cpu = time.clock_gettime_ns(process_clock) - cpu
        self._finish()
        return Figure(done / elapsed, cpu / 1e3 / done, waited / elapsed)

    def _submit(self, count: int) -> None:
        self.queue.submit_all(self._idle[:count])
        del self._idle[:count]
        self.queue.kick()

    def _turn_until(self, deadline: float) -> tuple[int, float]:
        """Requests done, and seconds of waiting for them."""
        queue, idle, clock = self.queue, self._idle, time.perf_counter
        has_used, reap, submit, kick = queue.has_used, queue.reap_heads, queue.submit_all, queue.kick
        polls, done, waited, now = self.job.polls, 0, 0.0, clock()
        give_up = deadline + 10
        while now < deadline:
            if not has_used():
                began = now
                if polls:
                    while not has_used() and clock() < give_up:
                        pass
                else:
                    queue.wait_used(10)
                waited += clock() - began
            heads = reap()
            count = len(heads)
            idle.fromlist(heads)
            submit(idle[:count])
            del idle[:count]
            kick()
            done += count
            now = clock()
            if now > give_up:
                raise TimeoutError(f"no request was completed for 10 s in {self.job.name}")
        return done, waited

    def _finish(self) -> None:
        """Wait for what is in flight, then look at everything; raises ``ValueError`` for a wrong answer."""
        while self.queue.outstanding:
            self._idle.fromlist([head for head, _ in self.queue.wait(10)])
        for slot in self.slots:
            if slot.status[0] == 0xFF:
                continue  # not used in so short a time
            self._check(slot)

    def _check(self, slot: Slot) -> None:
        sector = layout.REQUEST_HEADER.unpack_from(slot.header)[2]
        last = sector + self.job.length // 512 - 1
        found = (slot.status[0], bytes(slot.data[:8]), bytes(slot.data[-8:]))
        if found != (0, sector.to_bytes(8, "little"), last.to_bytes(8, "little")):
            raise ValueError(f"{self.job.name} at sector {sector} was answered with {found}")
        if self.job.kind == layout.REQUEST_IN:
            slot.data[:8] = slot.data[-8:] = bytes(8)

    def close(self) -> None:
        """Give the descriptors back."""
        for slot in self.slots:
            self.queue.release(slot.head)
