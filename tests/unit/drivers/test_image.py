"""Whole reads and writes on a raw image, with a kernel that does less than it is asked."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import Image, copy_pieces, open_image, skip_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 1 << 16


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.fixture
def image(descriptor: int) -> Image:
    return open_image(descriptor, read_only=False, direct=False)


def pieces_of(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def test_read_and_write(image: Image) -> None:
    buffers = pieces_of(1, 510, 1)
    image.read(buffers, 256)
    assert b"".join(buffers) == bytes(range(256)) * 2
    image.write([memoryview(b"ab"), memoryview(b"cd")], 1000)
    assert os.pread(image.descriptor, 4, 1000) == b"abcd"


class ShortTransfers:
    """``os.preadv`` and ``os.pwritev`` that move at most ``limit`` bytes a call."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.calls = 0

    def read(self, descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        self.calls += 1
        return os.preadv(descriptor, [buffers[0][: self.limit]], offset)

    def write(self, descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        self.calls += 1
        return os.pwritev(descriptor, [buffers[0][: self.limit]], offset)


def test_short_transfers_are_continued(image: Image) -> None:
    short = ShortTransfers(7)
    buffers = pieces_of(10, 20)
    image._transfer(short.read, buffers, 0, 0)
    assert b"".join(buffers) == bytes(range(30))
    image._transfer(short.write, [memoryview(bytes(20)), memoryview(b"x" * 3)], 100, 0)
    assert os.pread(image.descriptor, 24, 100) == bytes(20) + b"x" * 3 + bytes([123])
    assert short.calls == 2 + 3 + 3 + 1


@pytest.mark.parametrize("offset", [SIZE - 4, SIZE, SIZE + 512])
def test_a_read_beyond_the_end_is_an_error(image: Image, offset: int) -> None:
    with pytest.raises(OSError, match="ends before its capacity"):
        image.read(pieces_of(8), offset)


def test_a_bounce_buffer_carries_both_ways(image: Image) -> None:
    buffers = pieces_of(100, 412)
    image._bounce(os.preadv, buffers, 512, 0)
    assert b"".join(buffers) == bytes(range(256)) * 2
    image._bounce(os.pwritev, [memoryview(b"a" * 100), memoryview(b"b" * 412)], 512, 0)
    assert os.pread(image.descriptor, 512, 512) == b"a" * 100 + b"b" * 412


def test_refused_buffers_bounce_only_on_direct_images(image: Image) -> None:
    asked: list[int] = []

    def strict(descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        asked.append(len(buffers))
        if len(buffers) > 1:
            raise OSError(errno.EINVAL, "misaligned")
        return sum(map(len, buffers))

    with pytest.raises(OSError, match="misaligned"):
        image._transfer(strict, pieces_of(1, 1), 0, 0)
    image.direct = True
    image._transfer(strict, pieces_of(1, 1), 0, 0)
    assert asked == [2, 2, 1]


def test_discard_and_zeroes(image: Image) -> None:
    image.discard(0, 8192)
    assert os.pread(image.descriptor, 8192, 0) == bytes(8192)
    for unmap in (False, True):
        image.write([memoryview(b"\xff" * 4096)], 8192)
        image.write_zeroes(8192, 4096, unmap=unmap)
        assert os.pread(image.descriptor, 4096, 8192) == bytes(4096)
    assert os.fstat(image.descriptor).st_size == SIZE


@pytest.mark.parametrize("length", [512, 1 << 15])
def test_a_file_system_without_fallocate(image: Image, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    def refuse(self: Image, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(Image, "_fallocate", refuse)
    image.discard(0, length)
    assert os.pread(image.descriptor, 4, 0) == b"\0\1\2\3"
    image.write_zeroes(0, length, unmap=True)
    assert os.pread(image.descriptor, length, 0) == bytes(length)
    assert os.pread(image.descriptor, 1, length + 1) == b"\1"


def test_other_errors_are_not_hidden(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Image, "_fallocate", refuse)
    with pytest.raises(OSError, match="full"):
        image.discard(0, 512)
    with pytest.raises(OSError, match="full"):
        image.write_zeroes(0, 512, unmap=False)


def test_folders_are_no_images() -> None:
    folder = os.open("/", os.O_RDONLY)
    with pytest.raises(DriverError, match="neither a file nor a block device"):
        open_image(folder, read_only=True, direct=False)
    os.close(folder)


def test_an_image_opened_with_o_direct_is_direct(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    assert open_image(descriptor, read_only=False, direct=False).direct
    os.close(descriptor)


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.integers(0, 60))
def test_skipping_bytes(parts: list[bytes], count: int) -> None:
    left = skip_bytes([memoryview(part) for part in parts], count)
    assert b"".join(left) == b"".join(parts)[count:]


@given(st.lists(st.integers(1, 9), max_size=6))
def test_copying_pieces(lengths: list[int]) -> None:
    whole = memoryview(bytearray(range(sum(lengths))))
    buffers = pieces_of(*lengths)
    copy_pieces(buffers, whole, into=False)
    assert b"".join(buffers) == whole
    target = memoryview(bytearray(len(whole)))
    copy_pieces(buffers, target, into=True)
    assert target == whole
