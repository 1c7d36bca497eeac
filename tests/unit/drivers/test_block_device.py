"""The storage device on a small image: what is done in the loop, what in threads, what is refused."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.unit.channel.guest import BUFFERS, GUEST, Guest

from duovisor.channel.virtqueue import Virtqueue
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_device import BlockDevice
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.image_device import LARGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_BYTES = 1 << 20
LARGE = LARGE_BYTES + 4096
HEADER, STATUS, DATA = 256, 272, 512  # where the parts of a request lie, behind its table


class Disk(NamedTuple):
    """A device without a process, and its guest."""

    guest: Guest
    queue: Virtqueue
    device: BlockDevice
    image: int

    def submit(self, kind: int, sector: int, place: int, length: int, *, pieces: int = 1) -> int:
        """Make a request available whose table, header, status and data lie at ``place`` of the buffers."""
        view, address = self.guest.view[BUFFERS + place :], GUEST + BUFFERS + place
        layout.REQUEST_HEADER.pack_into(view, HEADER, kind, 0, sector)
        view[STATUS] = 0xFF
        step = length // pieces
        data = [(address + DATA + step * number, step) for number in range(pieces) if step]
        reads = kind == layout.REQUEST_IN
        head = self.guest.front.prepare(
            [(address + HEADER, 16), *([] if reads else data)],
            [*(data if reads else []), (address + STATUS, 1)],
            (address, view[:HEADER]),
        )
        self.guest.front.submit(head)
        return head

    def turn(self) -> list[tuple[int, int]]:
        """One turn of the loop; what the guest finds done then."""
        self.device.handle(self.queue, self.queue.pop())
        self.queue.publish()
        return self.guest.front.reap()

    def finish(self) -> list[tuple[int, int]]:
        """As ``turn``, and wait for the threads."""
        done = self.turn()
        self.device.drain()
        return done + self.guest.front.reap()

    def data(self, place: int, length: int) -> memoryview:
        return self.guest.view[BUFFERS + place + DATA :][:length]

    def status(self, place: int) -> int:
        return self.guest.view[BUFFERS + place + STATUS]


@pytest.fixture
def descriptor() -> Iterator[int]:
    opened = os.memfd_create("image")
    os.write(opened, b"".join(number.to_bytes(2, "little") * 256 for number in range(IMAGE_BYTES // 512)))
    yield opened
    os.close(opened)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def disk(descriptor: int, guest: Guest) -> Iterator[Disk]:
    device = BlockDevice(open_image(descriptor, read_only=False, direct=False))
    yield Disk(guest, guest.start_device(), device, descriptor)
    device.close()


def sectors(first: int, count: int) -> bytes:
    return b"".join(number.to_bytes(2, "little") * 256 for number in range(first, first + count))


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_read_is_answered_in_the_same_turn(disk: Disk, pieces: int) -> None:
    head = disk.submit(layout.REQUEST_IN, 40, 0, 4096, pieces=pieces)
    assert disk.turn() == [(head, 4097)]
    assert (disk.status(0), bytes(disk.data(0, 4096))) == (layout.STATUS_OK, sectors(40, 8))


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_write_is_answered_in_the_same_turn(disk: Disk, pieces: int) -> None:
    disk.data(0, 4096)[:] = os.urandom(4096)
    head = disk.submit(layout.REQUEST_OUT, 40, 0, 4096, pieces=pieces)
    assert disk.turn() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_OK
    assert os.pread(disk.image, 4096, 40 * 512) == disk.data(0, 4096)


def test_a_batch_of_all_kinds_is_answered(disk: Disk) -> None:
    disk.data(0x2000, 512)[:] = b"w" * 512
    heads = [
        disk.submit(layout.REQUEST_IN, 0, 0, 4096),
        disk.submit(layout.REQUEST_OUT, 100, 0x2000, 512),
        disk.submit(layout.REQUEST_FLUSH, 0, 0x4000, 0),
        disk.submit(99, 0, 0x6000, 512),
        disk.submit(layout.REQUEST_IN, 8, 0x8000, 4096, pieces=2),
        disk.submit(layout.REQUEST_IN, 16, 0xA000, 4096),
    ]
    assert sorted(disk.finish()) == sorted(zip(heads, (4097, 1, 1, 1, 4097, 4097), strict=True))
    statuses = [disk.status(0x2000 * number) for number in range(6)]
    assert statuses == [0, 0, 0, layout.STATUS_UNSUPPORTED, 0, 0]
    assert bytes(disk.data(0xA000, 4096)) == sectors(16, 8)
    assert os.pread(disk.image, 512, 100 * 512) == b"w" * 512


@pytest.mark.parametrize("kind", [layout.REQUEST_IN, layout.REQUEST_OUT])
@pytest.mark.parametrize(
    ("sector", "length"), [(IMAGE_BYTES // 512, 512), (2**40, 512), (2**64 - 1, 512), (0, 513)]
)
def test_what_the_disk_does_not_have_is_an_error(disk: Disk, kind: int, sector: int, length: int) -> None:
    head = disk.submit(kind, sector, 0, length)
    assert disk.turn() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_IO_ERROR
    assert os.fstat(disk.image).st_size == IMAGE_BYTES


def test_a_read_only_disk_is_not_written(descriptor: int, guest: Guest) -> None:
    device = BlockDevice(open_image(descriptor, read_only=True, direct=False))
    disk = Disk(guest, guest.start_device(), device, descriptor)
    head = disk.submit(layout.REQUEST_OUT, 0, 0, 512)
    assert disk.finish() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_IO_ERROR
    assert os.pread(descriptor, 512, 0) == sectors(0, 1)
    device.close()


def test_a_read_that_would_be_written_to_reads_nothing(disk: Disk) -> None:
    """The header says one direction, the descriptors the other."""
    disk.submit(layout.REQUEST_OUT, 40, 0, 512)
    layout.REQUEST_HEADER.pack_into(disk.guest.view, BUFFERS + HEADER, layout.REQUEST_IN, 0, 40)
    disk.data(0, 512)[:] = b"x" * 512
    disk.turn()
    assert bytes(disk.data(0, 512)) == b"x" * 512
    assert os.pread(disk.image, 512, 40 * 512) == sectors(40, 1)


@pytest.mark.parametrize("pieces", [1, 2])
def test_several_large_reads_are_shared_with_one_thread(disk: Disk, pieces: int) -> None:
    places = [0x30000 * number for number in range(4)]
    for number, place in enumerate(places):
        disk.submit(layout.REQUEST_IN, 300 * number, place, LARGE, pieces=pieces)
    before = threading.active_count()
    assert len(disk.finish()) == 4
    assert threading.active_count() <= before + 1
    for number, place in enumerate(places):
        assert bytes(disk.data(place, LARGE)) == sectors(300 * number, LARGE // 512)


def test_what_is_large_is_shown_when_it_is_done(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    publish = Virtqueue.publish

    def count(queue: Virtqueue) -> None:
        shown.append(queue.in_flight)
        publish(queue)

    monkeypatch.setattr(Virtqueue, "publish", count)
    for number in range(4):
        disk.submit(layout.REQUEST_IN, 0, 0x30000 * number, LARGE)
    assert len(disk.finish()) == 4
    assert len(shown) >= 3  # after each that the loop did, and at the end


def test_with_the_write_cache_off_a_write_waits_for_the_medium(disk: Disk) -> None:
    disk.device.write_config(layout.WCE_OFFSET, b"\0", migrating=False)
    head = disk.submit(layout.REQUEST_OUT, 0, 0, 512)
    assert disk.finish() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_OK
