"""What the guest wrote is what it reads, and what the image holds: against a model, in every mode."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.conftest import IMAGE_BYTES

from duovisor.channel import features as bits
from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import BlockClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.storage_driver.driver_process import DriverProcess

    from duovisor.controlling.drivers.block_client import Slot

ALL = (1 << 64) - 1 & ~bits.LOG_ALL
KINDS = (layout.REQUEST_IN, layout.REQUEST_OUT)
LENGTHS = (512, 1024, 4096, 12288, 65536, 262144)


class Disk:
    """The reference: what the disk must hold. Ranges in flight are never used by two requests at once."""

    def __init__(self, content: bytes, seed: int) -> None:
        self.content = bytearray(content)
        self.random = random.Random(seed)
        self.busy: list[range] = []

    def choose(self, length: int) -> range | None:
        start = self.random.randrange((len(self.content) - length) // 512 + 1) * 512
        if any(start < other.stop and other.start < start + length for other in self.busy):
            return None
        return range(start, start + length)


class Traffic:
    """Random reads and writes on one queue with many in flight, checked one by one."""

    def __init__(self, client: BlockClient, disk: Disk) -> None:
        self.client = client
        self.disk = disk
        self.idle: list[Slot] = [
            client.make_slot(kind, length, pieces=1 + (length // 4096) // 2)
            for kind in KINDS
            for length in LENGTHS
        ]
        self.flying: dict[int, tuple[Slot, range]] = {}

    def launch(self) -> None:
        """Submit one request, if a slot and a free range are there."""
        disk = self.disk
        if not self.idle:
            return
        slot = self.idle.pop(disk.random.randrange(len(self.idle)))
        area = disk.choose(len(slot.data))
        if area is None:
            self.idle.append(slot)
            return
        if is_write(slot):
            slot.data[:] = disk.random.randbytes(len(slot.data))
            disk.content[area.start : area.stop] = slot.data
        else:
            slot.data[:] = bytes(len(slot.data))
        disk.busy.append(area)
        self.flying[slot.head] = (slot, area)
        self.client.submit(slot, area.start // 512)

    def land(self) -> None:
        """Check what has completed; at least one request must."""
        self.client.queue.kick()
        for head, written in self.client.queue.wait(60):
            slot, area = self.flying.pop(head)
            assert slot.status[0] == layout.STATUS_OK
            assert written == (1 if is_write(slot) else len(slot.data) + 1)
            assert slot.data == self.disk.content[area.start : area.stop]
            self.disk.busy.remove(area)
            self.idle.append(slot)


def is_write(slot: Slot) -> bool:
    return slot.header[0] == layout.REQUEST_OUT


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("regions", [1, 5])
@pytest.mark.parametrize(
    "without",
    [0, bits.RING_EVENT_IDX, bits.RING_INDIRECT_DESC, bits.RING_EVENT_IDX | bits.RING_INDIRECT_DESC],
)
def test_random_traffic(
    start_driver: Callable[..., DriverProcess], image: Path, without: int, regions: int, queues: int
) -> None:
    disk = Disk(image.read_bytes(), seed=without + regions + queues)
    driver = start_driver("--queues", str(queues), "--poll-us", "20")
    with FrontEnd(queues=queues, regions=regions, queue_size=256, features=ALL & ~without) as front:
        front.connect(driver.channel)
        lanes = [Traffic(BlockClient(front, index), disk) for index in range(queues)]
        for turn in range(400):
            lane = lanes[turn % queues]
            for _ in range(disk.random.randrange(6)):
                lane.launch()
            if lane.flying:
                lane.land()
        for lane in lanes:
            while lane.flying:
                lane.land()
        lanes[0].client.flush()
    assert driver.finish() == (0, "")
    assert image.read_bytes() == disk.content


def test_direct_images_accept_buffers_anywhere(
    start_driver: Callable[..., DriverProcess], image: Path
) -> None:
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    driver = start_driver("--direct", flags=os.O_RDWR | os.O_DIRECT)
    content = image.read_bytes()
    with FrontEnd() as front:
        front.connect(driver.channel)
        client = BlockClient(front)
        for alignment in (4096, 512, 16):
            slots = [
                client.make_slot(layout.REQUEST_IN, 8192, pieces=3, alignment=alignment) for _ in range(8)
            ]
            client.drive(slots, range(0, 8 * 16, 16))
            for index, slot in enumerate(slots):
                assert slot.data == content[index * 8192 : (index + 1) * 8192]
            write = client.make_slot(layout.REQUEST_OUT, 4096, alignment=alignment)
            write.data[:] = bytes([alignment % 251]) * 4096
            assert client.run(write, 1000) == layout.STATUS_OK
            assert client.read(1000, 4096) == bytes([alignment % 251]) * 4096


def test_a_whole_disk_in_one_request(start_driver: Callable[..., DriverProcess], image: Path) -> None:
    driver = start_driver()
    with FrontEnd() as front:
        front.connect(driver.channel)
        client = BlockClient(front)
        assert client.request(layout.REQUEST_IN, 0, IMAGE_BYTES, pieces=100)[1] == image.read_bytes()
