"""The encrypted image: pieces, borders, what lies in between, and what is refused."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duovisor.controlling.drivers.encrypted import (
    KEY_BYTES,
    PIECE_BYTES,
    EncryptedImage,
    create_encrypted_device,
)
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import open_image
from duovisor.controlling.drivers.xts import Xts

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 2 << 20
KEY = bytes(range(KEY_BYTES))


@pytest.fixture(scope="module")
def descriptor() -> Iterator[int]:
    opened = os.memfd_create("image")
    os.truncate(opened, SIZE)
    yield opened
    os.close(opened)


def build_image(descriptor: int, unit_bytes: int = 512) -> EncryptedImage:
    return EncryptedImage(open_image(descriptor), Xts(KEY, unit_bytes), unit_bytes)


def cut(data: bytearray, cuts: list[int]) -> list[memoryview]:
    """The data as buffers that end at these places."""
    ends = [0, *sorted(cuts), len(data)]
    return [memoryview(data)[start:end] for start, end in pairwise(ends) if end > start]


@settings(max_examples=60, deadline=None)
@given(
    sector=st.integers(0, 100),
    sectors=st.integers(1, 1100),
    cuts=st.lists(st.integers(0, 500_000), max_size=6),
    unit=st.sampled_from([512, 4096]),
    seed=st.integers(0, 1 << 20),
)
def test_any_buffers_are_written_and_read_as_a_whole(
    descriptor: int, sector: int, sectors: int, cuts: list[int], unit: int, seed: int
) -> None:
    image, offset, length = build_image(descriptor, unit), sector * unit, sectors * 512 // unit * unit
    data = bytearray(random.Random(seed).randbytes(length))
    before = bytes(data)
    inside = [each for each in cuts if each < length]
    image.write(cut(data, inside), offset)
    assert data == before  # the guest's memory is not where it is encrypted
    assert os.pread(descriptor, length, offset) == Xts(KEY, unit).encrypt(before, offset)
    read = bytearray(length)
    image.read(cut(read, inside[::2]), offset)
    assert read == before
    again = bytearray(length)
    assert image.try_read(cut(again, inside[1::2]), offset, length) == (0 < length <= PIECE_BYTES)
    assert again == (before if 0 < length <= PIECE_BYTES else bytes(length))


@pytest.mark.parametrize(("offset", "length"), [(512, 4096), (0, 512), (4096, 4608), (1024, 1024)])
def test_parts_of_a_unit_are_refused(descriptor: int, offset: int, length: int) -> None:
    image = build_image(descriptor, 4096)
    with pytest.raises(OSError, match="no whole units of 4096"):
        image.write([memoryview(bytes(length))], offset)
    with pytest.raises(OSError, match="no whole units of 4096"):
        image.read([memoryview(bytearray(length))], offset)
    assert not image.try_read([memoryview(bytearray(length))], offset, length)


def test_the_first_read_on_a_file_system_that_always_waits(descriptor: int) -> None:
    """It refuses RWF_NOWAIT, and is asked again without."""
    image = build_image(descriptor)
    image.write([memoryview(b"text" * 128)], 0)
    read = bytearray(512)
    assert image.try_read([memoryview(read)], 0, 512)
    assert read == b"text" * 128
    assert not image.nowait


def test_an_error_in_the_middle_is_one(descriptor: int) -> None:
    with pytest.raises(OSError, match="the image ends before its capacity"):
        build_image(descriptor).read([memoryview(bytearray(1024))], SIZE - 512)


def open_key(content: bytes) -> int:
    opened = os.memfd_create("key")
    os.write(opened, content)
    return opened


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (None, [], "the descriptor key is missing"),
        (KEY[:-1], [], "the key has 63 bytes instead of 64"),
        (KEY + b"x", [], "the key has 65 bytes instead of 64"),
        (bytes(64), [], "both halves of the key are the same"),
        (KEY, ["--block-size", "4096"], "which is no multiple of 4096"),
        (KEY, ["--key", "x"], "option --key is unknown"),
    ],
)
def test_what_is_no_encrypted_disk(content: bytes | None, words: list[str], said: str) -> None:
    image = os.memfd_create("image")
    os.truncate(image, 4096 + 512)
    given_descriptors = {"image": image}
    if content is not None:
        given_descriptors["key"] = open_key(content)
    with pytest.raises(DriverError, match=said):
        create_encrypted_device(words, given_descriptors)
    for each in given_descriptors.values():
        os.close(each)


def test_a_device_needs_an_image() -> None:
    with pytest.raises(DriverError, match="the descriptor image is missing"):
        create_encrypted_device([], {})
