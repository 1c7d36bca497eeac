"""Every kind of request on every format, through real processes."""

from __future__ import annotations

import os
import random
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from tests.contract.formats.stack import Stack, check_image, create_image

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None, reason="qemu-storage-daemon is not installed"
)
SIZE = 32 << 20
FORMATS = [each for each in DiskFormat if each is not DiskFormat.RAW]


@pytest.mark.parametrize("disk_format", FORMATS)
def test_every_kind(tmp_path: Path, disk_format: DiskFormat) -> None:
    path = tmp_path / "disk"
    create_image(path, disk_format, SIZE)
    data = random.Random(0).randbytes(5 << 20)
    with FrontEnd(memory_bytes=64 << 20) as front, Stack(path, disk_format, front) as stack:
        client = BlockClient(front)
        assert int.from_bytes(front.get_config(0, 8), "little") * 512 == stack.size == SIZE
        client.write(3, data)
        client.flush()
        assert client.read(3, len(data)) == data
        zeroes = layout.RANGE.pack(4, 4096, 0)
        assert client.request(layout.REQUEST_WRITE_ZEROES, 0, zeroes)[0] == layout.STATUS_OK
        assert client.read(3, 512) + client.read(4, 4096 * 512) == data[:512] + bytes(4096 * 512)
        discard = layout.RANGE.pack(0, SIZE // 512, 0)
        assert client.request(layout.REQUEST_DISCARD, 0, discard)[0] == layout.STATUS_OK
        assert client.request(layout.REQUEST_IN, SIZE // 512, 512)[0] == layout.STATUS_IO_ERROR
        front.set_config(layout.WCE_OFFSET, b"\0")
        client.write(0, b"through" * 512)
        assert client.read(0, 7 * 512) == b"through" * 512
    check_image(path, disk_format)


@pytest.mark.parametrize("disk_format", FORMATS)
def test_read_only(tmp_path: Path, disk_format: DiskFormat) -> None:
    path = tmp_path / "disk"
    create_image(path, disk_format, SIZE)
    before = path.read_bytes()
    with FrontEnd() as front, Stack(path, disk_format, front, read_only=True) as stack:
        client = BlockClient(front)
        assert client.read(0, 4096) == bytes(4096)
        assert client.request(layout.REQUEST_OUT, 0, b"x" * 512)[0] == layout.STATUS_IO_ERROR
        client.flush()
        stack.kill_format()
        assert client.read(0, 4096) == bytes(4096)
    assert path.read_bytes() == before


def test_space_goes_back_to_the_host(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image(path, DiskFormat.QCOW2, SIZE)
    with FrontEnd() as front, Stack(path, DiskFormat.QCOW2, front):
        client = BlockClient(front)
        client.write(0, b"x" * (8 << 20))
        client.flush()
        full = path.stat().st_blocks
        assert client.request(layout.REQUEST_DISCARD, 0, layout.RANGE.pack(0, 16384, 0))[0] == 0
        client.flush()
        assert path.stat().st_blocks < full - 8192


def test_what_is_never_flushed_stays_bounded(tmp_path: Path) -> None:
    """Six times the log's size without a flush by the guest; then a flush, and the memory is given back."""
    path = tmp_path / "disk"
    create_image(path, DiskFormat.QCOW2, SIZE)
    with FrontEnd() as front, Stack(path, DiskFormat.QCOW2, front) as stack:
        client = BlockClient(front)
        slots = [client.make_slot(layout.REQUEST_OUT, 128 << 10) for _ in range(16)]
        client.drive(slots, [256 * (number % 250) for number in range(192)])
        memory = os.fstat(stack.replay)
        assert memory.st_blocks * 512 <= memory.st_size
        client.flush()
        assert os.fstat(stack.replay).st_blocks * 512 < 2 << 20


def test_a_format_process_that_is_away_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image(path, DiskFormat.QCOW2, SIZE)
    with FrontEnd() as front, Stack(path, DiskFormat.QCOW2, front) as stack:
        client = BlockClient(front)
        client.write(0, b"a" * 4096)
        stack.lose_format()
        slot = client.make_slot(layout.REQUEST_IN, 4096)
        client.submit(slot, 0)
        client.queue.kick()
        time.sleep(0.1)
        assert client.queue.reap() == []
        stack.start_format()
        assert client.queue.wait(60) == [(slot.head, 4097)]
        assert slot.data == b"a" * 4096


def test_the_front_end_ends_while_requests_wait(tmp_path: Path) -> None:
    """A VM that is stopped without a format process must not be held up."""
    path = tmp_path / "disk"
    create_image(path, DiskFormat.QCOW2, SIZE)
    with FrontEnd() as front, Stack(path, DiskFormat.QCOW2, front) as stack:
        client = BlockClient(front)
        client.read(0, 512)
        stack.lose_format()
        client.submit(client.make_slot(layout.REQUEST_IN, 4096), 0)
        client.queue.kick()
        began = time.monotonic()
        front.stop()
        assert time.monotonic() - began < 10  # and not for ever
        stack.start_format()
