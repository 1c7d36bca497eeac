"""A disk of one's own, as its author drives it: a device, a front end, and what goes wrong between them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from duovisor.channel.trial import Trial
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.controlling.drivers.block_protocol import BlockProtocol, Disk
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.storage_device import PIECE_BYTES, StorageDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 4 << 20
BIG = PIECE_BYTES + 8192


class Noted(StorageDevice):
    """Keeps its content in memory, and notes what it is asked for."""

    discards = True

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk, size_bytes=SIZE)
        self.content = bytearray(SIZE)
        self.asked: list[tuple[str, int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        self.asked.append(("read", offset, length))
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.asked.append(("write", offset, len(data)))
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.asked.append(("flush", 0, 0))

    def discard(self, offset: int, length: int) -> None:
        self.asked.append(("discard", offset, length))


class Broken(StorageDevice):
    """Fails whatever it is asked for."""

    discards = True

    def __init__(self) -> None:
        super().__init__(Disk(), size_bytes=SIZE)

    def _fail(self, *_: object, **__: object) -> bytes:
        raise OSError(5, "no")

    read = write = flush = discard = write_zeroes = _fail  # type: ignore[assignment]


@contextmanager
def tried(device: StorageDevice) -> Iterator[BlockClient]:
    with Trial(device) as trial:
        yield BlockClient(trial.front)


def test_requests_come_in_bytes_and_in_pieces() -> None:
    device = Noted(Disk(serial="mine"))
    with tried(device) as client:
        data = os.urandom(BIG)
        assert client.request(layout.REQUEST_OUT, 16, data, pieces=5)[0] == layout.STATUS_OK
        assert client.request(layout.REQUEST_IN, 16, BIG, pieces=3) == (layout.STATUS_OK, data)
        client.flush()
        assert client.request(layout.REQUEST_GET_ID, 0, 20)[1] == b"mine".ljust(20, b"\0")
    assert device.asked == [
        ("write", 8192, PIECE_BYTES), ("write", 8192 + PIECE_BYTES, 8192),
        ("read", 8192, PIECE_BYTES), ("read", 8192 + PIECE_BYTES, 8192), ("flush", 0, 0),
    ]  # fmt: skip


def test_discards_and_zeroes_by_default() -> None:
    device = Noted(Disk())
    device.content[:] = b"x" * SIZE
    with tried(device) as client:
        zeroes = layout.RANGE.pack(8, 16, layout.UNMAP)
        assert client.request(layout.REQUEST_WRITE_ZEROES, 0, zeroes)[0] == layout.STATUS_OK
        assert client.request(layout.REQUEST_DISCARD, 0, layout.RANGE.pack(64, 8, 0))[0] == layout.STATUS_OK
    assert device.content == b"x" * 4096 + bytes(8192) + b"x" * (SIZE - 12288)
    assert device.asked == [("write", 4096, 8192), ("discard", 32768, 4096)]


@pytest.mark.parametrize(
    ("kind", "sector", "data", "status"),
    [
        (layout.REQUEST_IN, 0, 100, layout.STATUS_IO_ERROR),
        (layout.REQUEST_IN, SIZE // 512, 512, layout.STATUS_IO_ERROR),
        (layout.REQUEST_OUT, SIZE // 512 - 1, bytes(1024), layout.STATUS_IO_ERROR),
        (layout.REQUEST_IN, 1 << 55, 512, layout.STATUS_IO_ERROR),
        (99, 0, 512, layout.STATUS_UNSUPPORTED),
        (layout.REQUEST_DISCARD, 0, b"short", layout.STATUS_UNSUPPORTED),
        (layout.REQUEST_DISCARD, 0, layout.RANGE.pack(0, 8, layout.UNMAP), layout.STATUS_UNSUPPORTED),
        (layout.REQUEST_DISCARD, 0, layout.RANGE.pack(0, 8, 2), layout.STATUS_UNSUPPORTED),
        (layout.REQUEST_DISCARD, 0, layout.RANGE.pack(0, 0, 0), layout.STATUS_IO_ERROR),
        (layout.REQUEST_WRITE_ZEROES, 0, layout.RANGE.pack(SIZE // 512, 1, 0), layout.STATUS_IO_ERROR),
    ],
)
def test_what_a_guest_must_not_ask_for_never_reaches_the_driver(
    kind: int, sector: int, data: bytes | int, status: int
) -> None:
    device = Noted(Disk())
    with tried(device) as client:
        assert client.request(kind, sector, data)[0] == status
    assert device.asked == []


def test_a_read_only_disk_is_not_changed() -> None:
    device = Noted(Disk(read_only=True))
    with tried(device) as client:
        for kind, data in (
            (layout.REQUEST_OUT, bytes(512)),
            (layout.REQUEST_WRITE_ZEROES, layout.RANGE.pack(0, 8, 0)),
            (layout.REQUEST_DISCARD, layout.RANGE.pack(0, 8, 0)),
        ):
            assert client.request(kind, 0, data)[0] == layout.STATUS_IO_ERROR
        assert client.read(0, 512) == bytes(512)
    assert device.features & layout.FEATURE_READ_ONLY


def test_without_a_write_cache_each_change_is_flushed() -> None:
    device = Noted(Disk())
    with Trial(device) as trial:
        trial.front.set_config(layout.WCE_OFFSET, b"\0")
        client = BlockClient(trial.front)
        client.write(0, bytes(512))
        zeroes = layout.RANGE.pack(8, 8, 0)
        assert client.request(layout.REQUEST_WRITE_ZEROES, 0, zeroes)[0] == layout.STATUS_OK
    assert [name for name, _, _ in device.asked] == ["write", "flush", "write", "flush"]
    assert device.save_state() == b"\0"
    fresh = Noted(Disk())
    fresh.load_state(device.save_state())
    assert fresh.write_through
    fresh.reset()
    assert not fresh.write_through


def test_an_os_error_is_the_guests() -> None:
    with tried(Broken()) as client:
        for kind, data in (
            (layout.REQUEST_IN, 512),
            (layout.REQUEST_OUT, bytes(512)),
            (layout.REQUEST_FLUSH, 0),
            (layout.REQUEST_DISCARD, layout.RANGE.pack(0, 8, 0)),
            (layout.REQUEST_WRITE_ZEROES, layout.RANGE.pack(0, 8, 0)),
        ):
            assert client.request(kind, 0, data)[0] == layout.STATUS_IO_ERROR


def test_discards_are_offered_by_who_has_them() -> None:
    class Plain(Noted):
        discards = False

    device = Plain(Disk())
    assert not device.features & (layout.FEATURE_DISCARD | layout.FEATURE_WRITE_ZEROES)
    with tried(device) as client:
        done = client.request(layout.REQUEST_DISCARD, 0, layout.RANGE.pack(0, 8, 0))
        assert done[0] == layout.STATUS_UNSUPPORTED


def test_on_an_image_it_need_override_nothing() -> None:
    descriptor = os.memfd_create("image")
    os.truncate(descriptor, SIZE)
    device = StorageDevice(Disk(open_image(descriptor)))
    with tried(device) as client:
        client.write(8, b"text" * 128)
        client.flush()
        assert client.read(8, 512) == b"text" * 128
    assert os.pread(descriptor, 4, 4096) == b"text"
    os.close(descriptor)


@pytest.mark.parametrize("size", [-512, 1000])
def test_sizes_that_no_disk_has(size: int) -> None:
    with pytest.raises(DriverError, match=f"a disk of {size} bytes is no positive multiple of 512"):
        StorageDevice(Disk(), size_bytes=size)


def test_one_without_image_and_size_is_refused() -> None:
    with pytest.raises(DriverError, match="a disk without an image needs size_bytes"):
        StorageDevice(Disk())


def test_the_protocol_alone_does_nothing() -> None:
    device = BlockProtocol(Disk(), SIZE)
    with pytest.raises(NotImplementedError):
        device.begin_read(None, memoryview(b""), [], 0, 0)  # type: ignore[arg-type]
