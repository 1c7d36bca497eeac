"""Each request type of virtio-blk, done right and done wrong; the configuration space; the write cache."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.conftest import IMAGE_BYTES

from duovisor.channel import features as bits
from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import BlockClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.storage_driver.driver_process import DriverProcess

SECTORS = IMAGE_BYTES // 512
OK, IO_ERROR, UNSUPPORTED = layout.STATUS_OK, layout.STATUS_IO_ERROR, layout.STATUS_UNSUPPORTED
IN, OUT, FLUSH, GET_ID = layout.REQUEST_IN, layout.REQUEST_OUT, layout.REQUEST_FLUSH, layout.REQUEST_GET_ID
DISCARD, WRITE_ZEROES = layout.REQUEST_DISCARD, layout.REQUEST_WRITE_ZEROES


@pytest.fixture
def driver(start_driver: Callable[..., DriverProcess]) -> DriverProcess:
    return start_driver("--serial", "disk-0001")


@pytest.fixture
def front(driver: DriverProcess) -> Iterator[FrontEnd]:
    with FrontEnd() as made:
        made.connect(driver.channel)
        yield made


@pytest.fixture
def client(front: FrontEnd) -> BlockClient:
    return BlockClient(front)


def area(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("=QII", sector, count, flags)


OUTSIDE = [
    (SECTORS, 512), (SECTORS - 1, 1024), (2**63, 512), (2**64 - 1, 512), (0, 513), (0, 511), (0, 100), (5, 1),
]  # fmt: skip


@pytest.mark.parametrize("kind", [IN, OUT])
def test_transfers_outside_the_disk_or_of_odd_length_fail(
    client: BlockClient, image: Path, kind: int
) -> None:
    before = image.read_bytes()
    for sector, length in OUTSIDE:
        assert client.request(kind, sector, length if kind == IN else b"x" * length)[0] == IO_ERROR
    assert image.read_bytes() == before
    assert client.read(SECTORS - 1, 512) == before[-512:]


def test_transfers_of_nothing_succeed(client: BlockClient) -> None:
    assert client.request(IN, 0, 0)[0] == OK
    assert client.request(OUT, 0, b"")[0] == OK


def test_an_image_that_shrank_fails_and_does_not_hang(client: BlockClient, image: Path) -> None:
    os.truncate(image, IMAGE_BYTES // 2)
    assert client.request(IN, SECTORS - 8, 4096)[0] == IO_ERROR
    assert client.request(IN, SECTORS // 2 - 4, 4096)[0] == IO_ERROR
    assert client.request(IN, 0, 4096)[0] == OK


def test_flush(client: BlockClient) -> None:
    assert client.request(FLUSH)[0] == OK


@pytest.mark.parametrize("pieces", [1, 4])
def test_serial_number(client: BlockClient, pieces: int) -> None:
    assert client.request(GET_ID, 0, 20, pieces=pieces) == (OK, b"disk-0001".ljust(20, b"\0"))


def test_unknown_requests_are_unsupported(client: BlockClient) -> None:
    for kind in (2, 3, 9, 14, 100, 2**31, 2**32 - 1):
        assert client.request(kind, 0, b"")[0] == UNSUPPORTED


def test_discard_gives_space_back(client: BlockClient, image: Path) -> None:
    os.sync()
    before = image.stat().st_blocks
    assert client.request(DISCARD, 0, area(0, 2048))[0] == OK
    assert image.stat().st_blocks <= before - 2000
    assert client.read(0, 4096) == bytes(4096)
    assert image.stat().st_size == IMAGE_BYTES


@pytest.mark.parametrize("flags", [0, layout.UNMAP])
def test_write_zeroes(client: BlockClient, image: Path, flags: int) -> None:
    before = image.read_bytes()
    assert client.request(WRITE_ZEROES, 0, area(3, 100, flags))[0] == OK
    assert image.read_bytes() == before[:1536] + bytes(51200) + before[52736:]


WRONG_RANGES = [
    (area(SECTORS, 1), IO_ERROR),
    (area(SECTORS - 1, 2), IO_ERROR),
    (area(2**64 - 1, 1), IO_ERROR),
    (area(0, 0), IO_ERROR),
    (area(0, 2**32 - 1), IO_ERROR),
    (area(0, 1, 2), UNSUPPORTED),
    (area(0, 1, 2**31), UNSUPPORTED),
    (area(0, 1) + area(2, 1), UNSUPPORTED),
    (area(0, 1)[:15], UNSUPPORTED),
    (b"", UNSUPPORTED),
]


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_wrong_ranges_change_nothing(client: BlockClient, image: Path, kind: int) -> None:
    before = image.read_bytes()
    for data, status in WRONG_RANGES:
        assert client.request(kind, 0, data)[0] == status
    assert image.read_bytes() == before


def test_discard_may_not_ask_for_unmap(client: BlockClient) -> None:
    assert client.request(DISCARD, 0, area(0, 1, layout.UNMAP))[0] == UNSUPPORTED


def test_a_read_only_disk_stays_as_it_is(start_driver: Callable[..., DriverProcess], image: Path) -> None:
    before = image.read_bytes()
    driver = start_driver("--read-only", flags=os.O_RDONLY)
    with FrontEnd() as front:
        front.connect(driver.channel)
        assert front.features & layout.FEATURE_READ_ONLY
        client = BlockClient(front)
        for kind, data in ((OUT, b"x" * 512), (DISCARD, area(0, 8)), (WRITE_ZEROES, area(0, 8))):
            assert client.request(kind, 0, data)[0] == IO_ERROR
        assert client.read(8, 4096) == before[4096:8192]
        assert client.request(FLUSH)[0] == OK
    assert image.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 8, 15, 17])
def test_header_and_status_may_be_cut_anywhere(front: FrontEnd, image: Path, cut: int) -> None:
    """No layout of a request may be assumed (virtio 1.2, 2.7.4)."""
    address, view = front.allocate(16 + 4096 + 1)
    layout.REQUEST_HEADER.pack_into(view, 0, OUT, 0, 8)
    view[16:4112] = bytes([cut]) * 4096
    queue = front.queues[0]
    head = queue.prepare([(address, cut), (address + cut, 4112 - cut)], [(address + 4112, 1)])
    queue.submit(head)
    queue.kick()
    assert queue.wait(5) == [(head, 1)]
    assert view[4112] == OK
    assert image.read_bytes()[4096:8192] == bytes([cut]) * 4096
    queue.release(head)
    layout.REQUEST_HEADER.pack_into(view, 0, IN, 0, 8)
    view[16:4112] = bytes(4096)
    head = queue.prepare([(address, 16)], [(address + 16, cut), (address + 16 + cut, 4097 - cut)])
    queue.submit(head)
    queue.kick()
    assert queue.wait(5) == [(head, 4097)]
    assert bytes(view[16:4113]) == bytes([cut]) * 4096 + b"\0"


def test_configuration_space(front: FrontEnd) -> None:
    config = front.get_config(0, 60)
    assert struct.unpack_from("<Q", config, 0) == (SECTORS,)
    assert struct.unpack_from("<II", config, 8) == (0, 126)  # size_max, seg_max
    assert struct.unpack_from("<HBB", config, 16) == (8, 16, 63)
    assert struct.unpack_from("<I", config, 20) == (512,)
    assert config[24:32] == bytes(8)  # topology: nothing to say
    assert config[32] == 1  # write cache
    assert struct.unpack_from("<H", config, 34) == (1,)
    assert struct.unpack_from("<III", config, 36) == (4194303, 1, 1)  # discard
    assert struct.unpack_from("<IIB", config, 48) == (4194303, 1, 1)  # write zeroes


def test_features_are_those_of_qemus_device(front: FrontEnd) -> None:
    device = front.features & 0xFFFFFF
    assert [bit for bit in range(24) if device >> bit & 1] == [2, 4, 6, 9, 10, 11, 13, 14]


def test_several_queues_are_offered(start_driver: Callable[..., DriverProcess]) -> None:
    driver = start_driver("--queues", "4", "--queue-size", "256")
    with FrontEnd(queues=4, queue_size=256) as front:
        front.connect(driver.channel)
        assert front.features & layout.FEATURE_MQ
        assert struct.unpack_from("<H", front.get_config(34, 2)) == (4,)
        assert struct.unpack_from("<I", front.get_config(12, 4)) == (254,)


def test_the_write_cache_setting_survives_the_driver(
    start_driver: Callable[..., DriverProcess], front: FrontEnd, driver: DriverProcess
) -> None:
    front.set_config(layout.WCE_OFFSET, b"\0")
    assert front.get_config(layout.WCE_OFFSET, 1) == b"\0"
    BlockClient(front).write(0, b"x" * 4096)
    driver.kill()
    front.connect(start_driver().channel)
    assert front.get_config(layout.WCE_OFFSET, 1) == b"\0"
    BlockClient(front).write(0, b"y" * 4096)
    front.set_config(layout.WCE_OFFSET, b"\1")
    assert front.get_config(layout.WCE_OFFSET, 1) == b"\1"


def test_a_guest_without_flush_gets_its_writes_through(
    start_driver: Callable[..., DriverProcess], image: Path
) -> None:
    driver = start_driver()
    with FrontEnd(features=bits.VERSION_1 | bits.PROTOCOL_FEATURES) as front:
        front.connect(driver.channel)
        BlockClient(front).write(8, b"z" * 4096)
        assert image.read_bytes()[4096:8192] == b"z" * 4096
