"""kill -9 at any moment, and a successor: every request is answered exactly once, and the data is right."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.conftest import IMAGE_BYTES

from duovisor.channel.errors import ChannelError
from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import NO_STATUS, BlockClient, Slot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.storage_driver.driver_process import DriverProcess


class Writer:
    """Writes blocks with running numbers; ``done`` maps each block to the last number acknowledged."""

    def __init__(self, front: FrontEnd, queue: int, blocks: range, length: int, depth: int) -> None:
        self.client = BlockClient(front, queue)
        self.length = length
        self.free = list(blocks)
        self.idle = [self.client.make_slot(layout.REQUEST_OUT, length) for _ in range(depth)]
        self.flying: dict[int, tuple[Slot, int, bytes]] = {}
        self.expected: dict[int, bytes] = {}
        self.acknowledged = 0
        self.number = 0

    def fill(self, source: random.Random) -> None:
        """Put every idle slot into flight."""
        while self.idle:
            slot = self.idle.pop()
            block = self.free.pop(source.randrange(len(self.free)))
            self.number += 1
            data = b"%08d%08d" % (block, self.number) * (self.length // 16)
            slot.data[:] = data
            self.flying[slot.head] = (slot, block, data)
            self.client.submit(slot, block * self.length // 512)
        self.client.queue.kick()

    def collect(self) -> int:
        """Take what was acknowledged; a head that is not in flight is a duplicate."""
        reaped = self.client.queue.reap()
        for head, _ in reaped:
            slot, block, data = self.flying.pop(head)
            assert slot.status[0] == layout.STATUS_OK
            slot.status[0] = NO_STATUS
            self.expected[block] = data
            self.free.append(block)
            self.idle.append(slot)
        self.acknowledged += len(reaped)
        return len(reaped)


@pytest.mark.parametrize(("length", "threads", "queues"), [(4096, 1, 1), (4096, 4, 2), (262144, 4, 2)])
def test_killed_again_and_again(
    start_driver: Callable[..., DriverProcess], image: Path, length: int, threads: int, queues: int
) -> None:
    source = random.Random(length + threads)
    options = ("--queues", str(queues), "--threads", str(threads))
    per_queue = IMAGE_BYTES // length // queues
    depth = min(32, per_queue // 2)
    with FrontEnd(queues=queues, queue_size=64) as front:
        driver = start_driver(*options)
        front.connect(driver.channel)
        writers = [
            Writer(front, index, range(index * per_queue, (index + 1) * per_queue), length, depth)
            for index in range(queues)
        ]
        for _ in range(12):
            deadline = time.perf_counter() + source.uniform(0.0, 0.03)
            while time.perf_counter() < deadline:
                for writer in writers:
                    writer.fill(source)
                    writer.collect()
            driver.kill()
            driver = start_driver(*options)
            front.connect(driver.channel)
        finish(writers)
        BlockClient(front).flush()
    content = image.read_bytes()
    assert sum(writer.acknowledged for writer in writers) > 200 * 4096 // length
    for writer in writers:
        for block, data in writer.expected.items():
            assert content[block * length : (block + 1) * length] == data


def finish(writers: list[Writer]) -> None:
    deadline = time.perf_counter() + 60
    for writer in writers:
        while writer.flying:
            assert writer.collect() or time.perf_counter() < deadline, "a request was lost"


@pytest.mark.parametrize("looks", range(0, 1000, 100))
def test_killed_in_the_first_batch(start_driver: Callable[..., DriverProcess], looks: int) -> None:
    """Killed after the front end has looked that many times, each a fraction of a microsecond."""
    driver = start_driver()
    with FrontEnd(queue_size=64) as front:
        front.connect(driver.channel)
        writer = Writer(front, 0, range(IMAGE_BYTES // 4096), 4096, 16)
        writer.fill(random.Random(looks))
        for _ in range(looks):
            writer.collect()
        os.kill(driver.process.pid, signal.SIGKILL)
        driver.kill()
        front.connect(start_driver().channel)
        finish([writer])
        assert writer.acknowledged == 16


def test_sigterm_hands_over_without_losing_anything(
    start_driver: Callable[..., DriverProcess],
) -> None:
    with FrontEnd(queue_size=64) as front:
        driver = start_driver()
        front.connect(driver.channel)
        writer = Writer(front, 0, range(IMAGE_BYTES // 4096), 4096, 32)
        for _ in range(3):
            writer.fill(random.Random(1))
            driver.process.terminate()
            driver.process.wait(60)
            assert driver.finish() == (0, "")
            writer.collect()
            driver = start_driver()
            front.connect(driver.channel)
        finish([writer])


def test_a_peer_that_dies_in_the_handshake_ends_the_driver_in_order(
    start_driver: Callable[..., DriverProcess],
) -> None:
    driver = start_driver()
    with FrontEnd() as front:
        front.connect(driver.channel)
        front.disconnect()
        assert driver.finish() == (0, "")
        with pytest.raises(ChannelError):
            front.get_config(0, 1)
