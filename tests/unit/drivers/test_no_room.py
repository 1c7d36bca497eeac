"""Requests that find no room on the host wait until there is, and no answer is a lie."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.guest import Guest
from tests.unit.drivers.test_block_device import IMAGE_BYTES, LARGE, Disk
from tests.unit.drivers.test_formatted import Rig

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_device import BlockDevice
from duovisor.controlling.drivers.block_protocol import Disk as DiskFile
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.storage_device import StorageDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT, FLUSH = layout.REQUEST_OUT, layout.REQUEST_FLUSH


class Told:
    """Counts how often a device said that it is full."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk on a full device, ``/dev/full``, which a memory file of the right size may take the place of."""
    image = os.memfd_create("image")
    os.ftruncate(image, IMAGE_BYTES)
    descriptor = os.dup(image)
    opened = open_image(descriptor)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, descriptor)
    os.close(full)
    guest = Guest()
    device = BlockDevice(opened)
    yield Disk(guest, guest.start_device(), device, image)
    device.close()
    guest.close()
    os.close(descriptor)
    os.close(image)


def make_room(disk: Disk) -> None:
    os.dup2(disk.image, disk.device.image.descriptor)


@pytest.mark.parametrize("length", [512, LARGE])  # in the loop, and in a thread
def test_a_write_waits_until_there_is_room(disk: Disk, length: int) -> None:
    disk.device.on_full = told = Told()
    disk.data(0, length)[:] = os.urandom(length)
    head = disk.submit(OUT, 8, 0, length)
    assert disk.turn() == []
    while not disk.device.parked:
        disk.device._pool.wait()
        disk.device.reap()
    assert (disk.guest.front.reap(), told.count) == ([], 1)
    disk.device.retry()
    disk.device._pool.wait()
    disk.device.reap()
    assert (len(disk.device.parked), told.count) == (1, 2)  # no room yet: it says so again
    make_room(disk)
    disk.device.retry()
    disk.device.drain()
    assert disk.guest.front.reap() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_OK
    assert os.pread(disk.image, length, 8 * 512) == disk.data(0, length)


def test_what_waits_stays_in_flight_when_the_queue_stops(disk: Disk) -> None:
    disk.device.on_full = Told()
    disk.submit(OUT, 8, 0, 512)
    disk.turn()
    disk.device.drain()
    assert disk.device.parked == []
    assert disk.guest.front.reap() == []  # whoever starts the queue again finds it in the in-flight log
    assert disk.queue.in_flight == 1
    assert disk.status(0) == 0xFF


def test_errors_for_another_reason_are_told(disk: Disk) -> None:
    disk.device.on_full = told = Told()
    head = disk.submit(OUT, 8, 0, 512)
    disk.turn()
    disk.device.report()
    assert disk.guest.front.reap() == [(head, 1)]
    assert (disk.status(0), told.count) == (layout.STATUS_IO_ERROR, 1)


def test_without_an_owner_the_guest_is_told(disk: Disk) -> None:
    head = disk.submit(OUT, 8, 0, 512)
    assert disk.turn() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_IO_ERROR


def test_a_flush_is_never_repeated(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write; a second flush would succeed, and the data be lost."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "fdatasync", fail)
    disk.device.on_full = told = Told()
    head = disk.submit(FLUSH, 0, 0, 0)
    assert disk.finish() == [(head, 1)]
    assert (disk.status(0), told.count) == (layout.STATUS_IO_ERROR, 0)


class Cramped(StorageDevice):
    """A disk of a user's own that has no room at first."""

    has_room = False

    def write(self, offset: int, data: bytes) -> None:
        if not self.has_room:
            raise OSError(errno.EDQUOT, "quota")


def test_a_disk_of_ones_own_waits_too() -> None:
    device = Cramped(DiskFile(), size_bytes=1 << 20)
    guest = Guest()
    disk = Disk(guest, guest.start_device(), device, -1)  # type: ignore[arg-type]
    device.on_full = told = Told()
    head = disk.submit(OUT, 8, 0, 512)
    assert (disk.turn(), told.count) == ([], 1)
    device.retry()
    assert (guest.front.reap(), told.count) == ([], 2)
    device.has_room = True
    device.retry()
    assert guest.front.reap() == [(head, 1)]
    assert disk.status(0) == layout.STATUS_OK
    guest.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_a_formatted_disk_asks_its_owner(rig: Rig) -> None:
    rig.device.on_full = told = Told()
    first, second = rig.submit(OUT, 0, b"x" * 512), rig.submit(OUT, 8, b"y" * 512)
    rig.connect()
    for each in rig.server.take():
        rig.server.execute(each, status=1)
    assert rig.turn() == []
    assert (told.count, len(rig.device.parked)) == (1, 2)
    rig.device.retry()
    assert sorted(rig.run()) == sorted([first, second])
    assert rig.disk[:512] + rig.disk[4096:4608] == b"x" * 512 + b"y" * 512
    third = rig.submit(OUT, 0, b"z" * 512)
    rig.turn()
    rig.server.execute(rig.server.take()[0], status=1)
    assert (rig.turn(), told.count) == ([], 2)
    rig.device.report()
    assert [head for head, _ in rig.guest.front.reap()] == [third]
    assert rig.status(third) == layout.STATUS_IO_ERROR
    assert rig.disk[:512] == b"x" * 512
