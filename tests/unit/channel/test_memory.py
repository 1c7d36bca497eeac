"""Guest memory: what may be mapped, and that translation agrees with a plain model at every address."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.channel.errors import GuestMemoryError, ProtocolError
from duovisor.channel.memory import GuestMemory, MemoryRegion, map_region
from duovisor.channel.messages import RegionDescription

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory_file() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, 0x10000)
    os.pwrite(descriptor, bytes(range(256)) * 256, 0)
    yield descriptor
    os.close(descriptor)


def test_a_region_is_its_part_of_the_file(memory_file: int) -> None:
    region = map_region(RegionDescription(0x1000, 0x200, 0x7000, 0x123), memory_file)
    assert bytes(region.view[:4]) == b"\x23\x24\x25\x26"
    region.view[0] = 0xAA
    assert os.pread(memory_file, 1, 0x123) == b"\xaa"


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (RegionDescription(0, 0, 0, 0), "empty"),
        (RegionDescription(0, 0x10001, 0, 0), "its file at 0x10000"),
        (RegionDescription(0, 1, 0, 0x10000), "its file at 0x10000"),
        (RegionDescription(0, 2**64 - 1, 0, 0), "its file at 0x10000"),
        (RegionDescription(0, 0x1000, 0, 2**64 - 1), "its file at 0x10000"),
        (RegionDescription(2**64 - 0xFFF, 0x1000, 0, 0), "end of the address space"),
        (RegionDescription(0, 0x1000, 2**64 - 0xFFF, 0), "end of the address space"),
    ],
)
def test_impossible_regions_are_refused(memory_file: int, description: RegionDescription, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        map_region(description, memory_file)


def test_what_is_no_memory_is_refused() -> None:
    folder = os.open("/", os.O_RDONLY)
    event = os.eventfd(0)
    for descriptor in (folder, event):
        with pytest.raises(ProtocolError):
            map_region(RegionDescription(0, 1, 0, 0), descriptor)
        os.close(descriptor)


def test_memory_that_may_not_be_written_is_refused(memory_file: int) -> None:
    read_only = os.open(f"/proc/self/fd/{memory_file}", os.O_RDONLY)
    with pytest.raises(ProtocolError, match="cannot be mapped"):
        map_region(RegionDescription(0, 0x1000, 0, 0), read_only)
    os.close(read_only)


def make_region(guest: int, user: int, size: int) -> MemoryRegion:
    return MemoryRegion(guest, user, memoryview(bytearray(size)))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ((0x1FFF, 0x9000), "guest address"),
        ((0x0800, 0x9000), "guest address"),
        ((0x5000, 0x5FFF), "user address"),
    ],
)
def test_overlapping_regions_are_refused(second: tuple[int, int], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        GuestMemory([make_region(0x1000, 0x5000, 0x1000), make_region(*second, 0x1000)])


def test_regions_come_and_go() -> None:
    memory = GuestMemory([make_region(0x1000, 0x5000, 0x1000)])
    memory.add(make_region(0x2000, 0x9000, 0x2000))
    assert memory.main_start == 0x2000
    memory.remove(RegionDescription(0x2000, 0x2000, 0x9000, 0))
    assert memory.main_start == 0x1000
    with pytest.raises(ProtocolError, match="no memory region at 0x2000"):
        memory.remove(RegionDescription(0x2000, 0x2000, 0x9000, 0))


def test_slots_are_limited() -> None:
    memory = GuestMemory([make_region(0x1000 * index, 0x1000 * index, 16) for index in range(64)])
    with pytest.raises(ProtocolError, match="more than 64"):
        memory.add(make_region(0x100000, 0x100000, 16))


layouts = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=5)


@given(layouts, st.integers(0, 200), st.integers(-2, 120))
def test_translation_agrees_with_a_model(layout: list[tuple[int, int]], address: int, length: int) -> None:
    model: dict[int, tuple[int, int]] = {}
    regions, position = [], 0
    for number, (gap, size) in enumerate(layout):
        position += gap
        regions.append(make_region(position, 1000 + 2 * position, size))
        model |= {position + offset: (number, offset) for offset in range(size)}
        position += size
    memory = GuestMemory(regions)
    wanted = range(address, address + length)
    if length > 0 and all(at in model for at in wanted):
        pieces = memory.slices(address, length)
        for number, at in enumerate(wanted):
            region, offset = model[at]
            regions[region].view[offset] = number
        assert b"".join(pieces) == bytes(range(length))
    else:
        with pytest.raises(GuestMemoryError):
            memory.slices(address, length)


@given(layouts, st.integers(900, 1500), st.integers(0, 60))
def test_user_translation_stays_in_one_region(
    layout: list[tuple[int, int]], address: int, length: int
) -> None:
    regions, position = [], 0
    for gap, size in layout:
        position += gap
        regions.append(make_region(position, 1000 + position, size))
        position += size
    holder = [r for r in regions if r.user_start <= address < r.user_end and address + length <= r.user_end]
    memory = GuestMemory(regions)
    if holder:
        assert len(memory.user_slice(address, length)) == length
    else:
        with pytest.raises(GuestMemoryError):
            memory.user_slice(address, length)
