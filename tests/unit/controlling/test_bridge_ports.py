"""What is said to and heard from the kernel's bridge: messages as bytes, with no kernel."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.networks.bridge_ports import (
    Learned,
    Settings,
    build_copy,
    build_place,
    parse_learned,
    parse_port,
)
from duovisor.controlling.networks.frames import HEADER_BYTES, is_for_group
from duovisor.controlling.networks.moving import DUMMY
from duovisor.controlling.networks.netlink import build_attribute, parse_attributes, parse_messages
from duovisor.controlling.networks.offloads import OFFLOADS, find_offloads

ADDRESS = bytes.fromhex("525400123456")
PORT = 7
REACHABLE, STALE, STATIC, PERMANENT = 0x02, 0x04, 0x40, 0x80
OF_PORT, OF_BRIDGE, STICKY = 0x02, 0x04, 0x40
SET_LINK, DELETE_LINK = 19, 17


def build_entry(state: int, flags: int = 0, *, port: int = PORT, vlan: int = 0) -> bytes:
    """An entry as Linux 6.18 dumps it."""
    attributes = [(2, ADDRESS), (9, struct.pack("=I", 2)), (15, bytes(4)), (3, bytes(16))]
    attributes += [(5, struct.pack("=H", vlan))] if vlan else []
    return struct.pack("=B3xiHBB", 7, port, state, flags, 0) + build_all(attributes)


def build_all(attributes: list[tuple[int, bytes]]) -> bytes:
    return b"".join(build_attribute(*each) for each in attributes)


def build_port(settings: list[tuple[int, bytes]], vlans: list[tuple[int, int]]) -> bytes:
    """A port as it is dumped: its own settings, and flags and number of each VLAN."""
    infos = build_all([(2, struct.pack("=HH", *each)) for each in vlans])
    inner = build_all([(3, b"name\0"), (12 | 0x8000, build_all(settings)), (26, infos)])
    return struct.pack("=BxHiII", 7, 1, PORT, 0, 0) + inner


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=70))))
def test_attributes_come_back(attributes: list[tuple[int, bytes]]) -> None:
    assert parse_attributes(build_all(attributes)) == attributes


@given(st.binary(max_size=200))
def test_what_is_cut_off_is_left_out(answer: bytes) -> None:
    assert sum(len(body) + 16 for _, _, body in parse_messages(answer)) <= len(answer)
    assert sum(len(value) + 4 for _, value in parse_attributes(answer)) <= len(answer)


def test_only_addresses_behind_the_port_count() -> None:
    assert parse_learned(build_entry(REACHABLE), PORT) == Learned(ADDRESS, 0, REACHABLE, 0)
    assert parse_learned(build_entry(STALE, vlan=10), PORT) == Learned(ADDRESS, 10, STALE, 0)
    assert parse_learned(build_entry(PERMANENT), PORT) is None  # the host's
    assert parse_learned(build_entry(REACHABLE, OF_PORT), PORT) is None  # in the interface's own table
    assert parse_learned(build_entry(REACHABLE, port=8), PORT) is None


def test_a_place_ages_unless_it_was_configured() -> None:
    for entry, sticky, state, flags in (
        (Learned(ADDRESS, 0, REACHABLE, 0), False, REACHABLE, OF_BRIDGE),
        (Learned(ADDRESS, 0, STALE, OF_BRIDGE), True, REACHABLE, OF_BRIDGE | STICKY),
        (Learned(ADDRESS, 0, REACHABLE, STICKY), False, REACHABLE, OF_BRIDGE),
        (Learned(ADDRESS, 10, STATIC, 0), False, STATIC, OF_BRIDGE),
    ):
        body = build_place(entry, 9, sticky=sticky).body
        assert struct.unpack_from("=B3xiHBB", body) == (7, 9, state, flags, 0)
        expected = [(2, ADDRESS), (5, struct.pack("=H", 10))] if entry.vlan else [(2, ADDRESS)]
        assert parse_attributes(body[12:]) == expected


def test_settings_are_those_an_administrator_makes() -> None:
    state, priority, isolated, router = (1, b"\3"), (2, b"\x20\0"), (33, b"\1"), (25, b"\1")
    port = parse_port(build_port([state, priority, isolated, router], [(6, 1), (0, 20)]))
    assert port == Settings((isolated,), frozenset({struct.pack("=HH", 6, 1), struct.pack("=HH", 0, 20)}))
    assert parse_port(b"\0" * 16) == Settings((), frozenset())


def test_a_copy_says_only_what_differs() -> None:
    source = parse_port(build_port([(33, b"\1")], [(6, 10), (0, 20)]))
    target = parse_port(build_port([(33, b"\0")], [(6, 1), (0, 20)]))
    assert build_copy(source, source, PORT) == []
    settings, added, gone = build_copy(source, target, PORT)
    assert (settings.kind, added.kind, gone.kind) == (SET_LINK, SET_LINK, DELETE_LINK)
    assert parse_attributes(settings.body[16:]) == [(12, build_attribute(33, b"\1"))]
    assert parse_attributes(added.body[16:]) == [(26, build_attribute(2, struct.pack("=HH", 6, 10)))]
    assert parse_attributes(gone.body[16:]) == [(26, build_attribute(2, struct.pack("=HH", 6, 1)))]


def test_offloads_are_found_by_the_kernels_names() -> None:
    names = ["tx-scatter-gather", *(f"feature-{index}" for index in range(40)), *OFFLOADS]
    assert find_offloads(names, [0xFFFFFFFF, 0xFFFFFFFF]) == 0x6F
    assert find_offloads(names, [0xFFFFFFFF, 1 << 9]) == 0x01
    assert find_offloads(["other"], [1]) == 0


def test_the_dummy_is_for_nobody_wherever_it_begins() -> None:
    for offset in range(HEADER_BYTES, HEADER_BYTES + 12):
        assert DUMMY[offset : offset + 6] == b"\2" * 6
    assert not is_for_group(DUMMY)
    assert is_for_group(bytes(HEADER_BYTES) + b"\xff" * 6)
