"""The wire format: what is built is parsed back, and every wrong length or value is refused."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.channel import messages as m
from duovisor.channel import requests as r
from duovisor.channel.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

VRING_ADDRESS_FIELDS = ("index", "flags", "descriptors", "used", "available", "log_guest_address")
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)


@given(U32, U32, st.integers(0, m.MAX_PAYLOAD_BYTES))
def test_header_round_trip(request: int, flags: int, size: int) -> None:
    flags &= ~m.VERSION_MASK
    assert m.parse_header(m.build_header(request, flags, size)) == (request, flags, size)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"version {version}"):
        m.parse_header(struct.pack("=III", 1, version, 0))


@pytest.mark.parametrize("size", [m.MAX_PAYLOAD_BYTES + 1, 2**31, 2**32 - 1])
def test_oversized_payload_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=str(size)):
        m.parse_header(struct.pack("=III", 1, 1, size))


@given(U32, U32)
def test_vring_state_round_trip(index: int, number: int) -> None:
    assert m.parse_vring_state(m.build_vring_state(index, number)) == (index, number)


@given(st.tuples(U32, U32, U64, U64, U64, U64))
def test_vring_address_round_trip(fields: tuple[int, int, int, int, int, int]) -> None:
    parsed = r.parse_vring_address(m.build_vring_address(m.VringAddress(*fields)))
    assert [getattr(parsed, name) for name in VRING_ADDRESS_FIELDS] == list(fields)


@given(st.lists(st.tuples(U64, U64, U64, U64), max_size=8))
def test_memory_table_round_trip(regions: list[tuple[int, int, int, int]]) -> None:
    parsed = r.parse_memory_table(m.build_memory_table([m.RegionDescription(*region) for region in regions]))
    assert [(r.guest_address, r.size, r.user_address, r.mmap_offset) for r in parsed] == regions


def test_memory_table_of_nine_regions_is_refused() -> None:
    with pytest.raises(ProtocolError, match="9 regions"):
        r.parse_memory_table(m.build_memory_table([m.RegionDescription(0, 1, 0, 0)] * 9))


def test_memory_table_shorter_than_it_says_is_refused() -> None:
    whole = m.build_memory_table([m.RegionDescription(0, 1, 0, 0)] * 3)
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            r.parse_memory_table(whole[:length])


def test_memory_region_round_trip() -> None:
    parsed = r.parse_memory_region(m.build_memory_region(m.RegionDescription(1, 2, 3, 4)))
    assert (parsed.guest_address, parsed.size, parsed.user_address, parsed.mmap_offset) == (1, 2, 3, 4)


@given(st.integers(0, 255), st.integers(0, 1), st.binary(max_size=256))
def test_config_round_trip(offset: int, flags: int, data: bytes) -> None:
    if offset + len(data) <= 256:
        assert m.parse_config(m.build_config(offset, flags, data)) == (offset, flags, data)
    else:
        with pytest.raises(ProtocolError, match="beyond 256"):
            m.parse_config(m.build_config(offset, flags, data))


def test_config_that_carries_other_bytes_than_it_says_is_refused() -> None:
    with pytest.raises(ProtocolError, match="carries 3"):
        m.parse_config(struct.pack("=III", 0, 4, 0) + b"abc")


@pytest.mark.parametrize("length", [20, 24])
def test_inflight_with_and_without_padding(length: int) -> None:
    parsed = m.parse_inflight(m.build_inflight(m.InflightDescription(4096, 64, 2, 128))[:length])
    assert (parsed.mmap_size, parsed.mmap_offset, parsed.queues, parsed.queue_size) == (4096, 64, 2, 128)


def test_vring_descriptor_says_whether_one_comes() -> None:
    assert r.parse_vring_descriptor(m.build_u64(3)) == (3, True)
    assert r.parse_vring_descriptor(m.build_u64(3 | r.VRING_NO_DESCRIPTOR)) == (3, False)


PARSERS: list[tuple[Callable[[bytes], object], set[int]]] = [
    (m.parse_u64, {8}),
    (m.parse_vring_state, {8}),
    (r.parse_vring_address, {40}),
    (r.parse_vring_descriptor, {8}),
    (r.parse_memory_region, {40}),
    (m.parse_inflight, {20, 24}),
    (r.parse_log, {16}),
]


@pytest.mark.parametrize(("parse", "lengths"), PARSERS, ids=lambda value: getattr(value, "__name__", ""))
def test_only_the_right_length_is_accepted(parse: Callable[[bytes], object], lengths: set[int]) -> None:
    for length in range(64):
        if length in lengths:
            parse(bytes(length))
        else:
            with pytest.raises(ProtocolError):
                parse(bytes(length))


@given(st.binary(max_size=400))
def test_no_parser_raises_anything_else(payload: bytes) -> None:
    for parse in [*(parse for parse, _ in PARSERS), r.parse_memory_table, m.parse_config]:
        with contextlib.suppress(ProtocolError):
            parse(payload)
