"""Hostile front ends: any bytes, half messages, answers that nobody reads, impossible memory and logs."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.channel.conftest import open_descriptors
from tests.unit.channel.hostile_peer import (
    DATA,
    MEMORY_BYTES,
    USER,
    HostilePeer,
    make_memory,
    map_memory,
    ring_address,
)

from duovisor.channel import features as bits
from duovisor.channel import messages as m
from duovisor.channel.errors import ChannelError, ProtocolError
from duovisor.channel.inflight import QueueInflight, region_bytes
from duovisor.channel.messages import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leak")

PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def peer() -> Iterator[HostilePeer]:
    made = HostilePeer()
    yield made
    made.close()


# Bytes

headers = st.builds(
    struct.Struct("=III").pack,
    st.one_of(st.integers(0, 45), st.integers(0, 2**32 - 1)),
    st.one_of(st.just(1), st.just(9), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 48), st.integers(0, 5000), st.integers(0, 2**32 - 1)),
)
streams = st.lists(st.one_of(headers, st.binary(max_size=300)), max_size=8).map(b"".join)


@PROPERTY
@given(streams, st.lists(st.integers(1, 40), max_size=4), st.integers(0, 3))
def test_any_bytes_end_in_order_or_are_waited_for(stream: bytes, cuts: list[int], descriptors: int) -> None:
    """However they are cut: what is left over is half a message, of which the end is told at the close."""
    peer = HostilePeer()
    peer.set_up()
    position = 0
    for cut in [*cuts, len(stream)]:
        piece = stream[position : position + cut]
        position += len(piece)
        if piece:
            peer.send_bytes(piece, [os.eventfd(0) for _ in range(descriptors)])
    peer.connection.socket.shutdown(1)  # we say no more, and wait for the end of the back end
    assert isinstance(peer.ending(), ChannelError | None)
    peer.close()


HALF = m.build_header(Request.SET_FEATURES, 0, 8) + m.build_u64(0)


@pytest.mark.parametrize("sent", range(1, len(HALF)))
def test_half_a_message_holds_up_no_queue(peer: HostilePeer, sent: int) -> None:
    peer.set_up()
    assert peer.is_served()
    peer.send_bytes(HALF[:sent], [os.eventfd(0)])
    for index in (0, 1):
        assert peer.echo(b"while it waits", index) == b"stiaw ti elihw"


@pytest.mark.parametrize("sent", [1, 12, 19])
def test_half_a_message_holds_up_no_stop(peer: HostilePeer, sent: int) -> None:
    peer.set_up()
    assert peer.is_served()
    peer.send_bytes(HALF[:sent], [os.eventfd(0)])
    assert peer.echo(b"x") == b"x"
    peer.running.backend.stop()
    assert peer.ending() is None


def test_answers_that_nobody_reads_end_the_connection(peer: HostilePeer) -> None:
    before = len(open_descriptors())
    peer.connection.socket.settimeout(5)
    for _ in range(5000):
        peer.send(Request.GET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 2, 32768)))
    ended = peer.ending()
    assert isinstance(ended, ProtocolError)
    assert "does not read" in ended.message
    assert len(open_descriptors()) <= before


def test_a_flood_of_messages_holds_up_no_queue(peer: HostilePeer) -> None:
    peer.set_up()
    for _ in range(300):
        peer.send(Request.SET_OWNER)
    assert peer.echo(b"meanwhile") == b"elihwnaem"


# Memory


def add_region(peer: HostilePeer, guest: int, size: int, user: int, offset: int = 0) -> None:
    region = m.RegionDescription(guest, size, user, offset)
    peer.send(Request.ADD_MEM_REG, m.build_memory_region(region), make_memory())


IMPOSSIBLE_REGIONS = {
    "empty": (1 << 40, 0, 1 << 40, 0),
    "guest address wraps": (2**64 - 4096, 8192, 1 << 40, 0),
    "user address wraps": (1 << 40, 8192, 2**64 - 4096, 0),
    "offset beyond the file": (1 << 40, 4096, 1 << 40, MEMORY_BYTES),
    "end beyond the file": (1 << 40, MEMORY_BYTES, 1 << 40, 1),
    "offset and size wrap": (1 << 40, 2**64 - 1, 0, 2**64 - 1),
    "offset wraps": (1 << 40, 4096, 1 << 40, 2**64 - 2048),
    "overlap in guest addresses": (MEMORY_BYTES - 1, 4096, 1 << 40, 0),
    "overlap in user addresses": (1 << 40, 4096, USER + MEMORY_BYTES - 1, 0),
    "the same again": (0, MEMORY_BYTES, USER, 0),
}


@pytest.mark.parametrize("name", IMPOSSIBLE_REGIONS)
def test_impossible_regions_end_the_connection(peer: HostilePeer, name: str) -> None:
    peer.set_up()
    add_region(peer, *IMPOSSIBLE_REGIONS[name])
    assert isinstance(peer.ending(), ProtocolError)


def test_odd_regions_are_served(peer: HostilePeer) -> None:
    """Neither addresses nor offsets need to be multiples of anything."""
    peer.set_up()
    add_region(peer, (1 << 40) + 1, 3, (1 << 40) + 7, 5)
    add_region(peer, 2**64 - 4096, 4096, 2**64 - 4096)
    assert peer.is_served()
    assert peer.echo(b"odd") == b"ddo"


# Queues


def set_address(peer: HostilePeer, **changes: int) -> None:
    address = ring_address(peer.queues[0])
    for name, value in changes.items():
        setattr(address, name, value)
    peer.send(Request.SET_VRING_ADDR, m.build_vring_address(address))


RING_PARTS = ("descriptors", "available", "used")
BAD_PLACES = (0, 1, USER - 16, USER + MEMORY_BYTES - 16, USER + MEMORY_BYTES, 2**64 - 16, 2**64 - 1)


@pytest.mark.parametrize("part", RING_PARTS)
@pytest.mark.parametrize("place", BAD_PLACES)
def test_a_ring_moved_out_of_memory_ends_the_connection(peer: HostilePeer, part: str, place: int) -> None:
    peer.set_up()
    assert peer.is_served()
    set_address(peer, **{part: place})
    assert isinstance(peer.ending(), ChannelError)


def test_rings_on_top_of_each_other_cost_no_other_queue(peer: HostilePeer) -> None:
    peer.set_up()
    set_address(peer, used=USER, available=USER)
    peer.queues[0].force_kick()
    assert peer.is_served()
    assert peer.echo(b"other", 1) == b"rehto"


def test_a_queue_without_a_size_does_not_start(peer: HostilePeer) -> None:
    peer.set_memory()
    peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1))
    peer.send(Request.SET_VRING_ADDR, m.build_vring_address(m.VringAddress(0, 0, USER, USER, USER, 0)))
    peer.send(Request.SET_VRING_KICK, m.build_u64(0), os.eventfd(0))
    ended = peer.ending()
    assert ended is not None
    assert "size 0" in ended.message


# The log of requests in flight


def build_log_file(content: bytes) -> int:
    descriptor = make_memory(8192)
    os.pwrite(descriptor, content, 0)
    return descriptor


words = st.one_of(st.sampled_from([0, 1, 7, 8, 0xFF, 0xFFFF]), st.integers(0, 0xFFFF))
heads = st.lists(
    st.tuples(st.sampled_from([0, 1, 255]), words, st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])),
    max_size=8,
)


def build_inflight_region(
    version: int, batch_head: int, used: int, states: list[tuple[int, int, int]]
) -> bytes:
    region = struct.pack("=QHHHH", 0, version, 8, batch_head, used)
    region += b"".join(struct.pack("=B5xHQ", *state) for state in states)
    return region.ljust(region_bytes(8), b"\0")


nonsense = st.one_of(
    st.binary(max_size=512),
    st.builds(build_inflight_region, st.integers(0, 2), words, words, heads),
)


@PROPERTY
@given(nonsense, st.integers(0, 0xFFFF), st.binary(max_size=256))
def test_any_log_of_requests_in_flight_is_used_or_refused(
    content: bytes, used_index: int, table: bytes
) -> None:
    peer = HostilePeer()
    memory = map_memory(peer.memory)
    memory[: len(table)] = table
    description = m.InflightDescription(2 * region_bytes(8) + 64, 0, 2, 8)
    peer.send(Request.SET_INFLIGHT_FD, m.build_inflight(description), build_log_file(content))
    peer.set_up()
    struct.pack_into("=H", memory, peer.queues[0].used_address + 2, used_index)
    peer.queues[0].force_kick()
    try:
        assert peer.is_served()
    except ChannelError:
        assert isinstance(peer.ending(), ChannelError)
    del memory
    peer.close()


def test_counters_at_their_end_are_refused() -> None:
    region = QueueInflight(memoryview(bytearray(region_bytes(8))), 8)
    region.counters[3] = 2**64 - 1
    with pytest.raises(ProtocolError, match="more than there can be"):
        region.next_counter([0])


# The dirty log


@pytest.mark.parametrize(
    ("size", "offset"),
    [(0, 0), (7, 0), (8, 4), (4096, 2**64 - 4096), (2**64 - 8, 0), (2**64 - 8, 2**64 - 8), (8, MEMORY_BYTES)],
)
def test_impossible_dirty_logs_end_the_connection(peer: HostilePeer, size: int, offset: int) -> None:
    peer.set_up()
    peer.send(Request.SET_LOG_BASE, m.build_log(size, offset), make_memory())
    assert isinstance(peer.ending(), ProtocolError)


def test_a_used_ring_outside_the_dirty_log_ends_the_connection(peer: HostilePeer) -> None:
    peer.set_up()
    peer.send(Request.SET_LOG_BASE, m.build_log(8, 0), make_memory())
    assert peer.connection.wait(5).request == Request.SET_LOG_BASE
    peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1 | bits.PROTOCOL_FEATURES | bits.LOG_ALL))
    set_address(peer, flags=1, log_guest_address=2**64 - 1)
    assert peer.is_served()
    queue = peer.queues[0]
    queue.submit(queue.prepare([(DATA, 1)], [(DATA, 1)]))
    queue.force_kick()
    ended = peer.ending()
    assert ended is not None
    assert "the dirty log ends before" in ended.message


def test_messages_are_parsed_in_no_time() -> None:
    """The largest message there can be, of every number: nothing grows with a number in it."""
    started = time.monotonic()
    for number in range(64):
        peer = HostilePeer()
        peer.send(number, b"\xff" * m.MAX_PAYLOAD_BYTES)
        peer.connection.socket.shutdown(1)
        assert isinstance(peer.ending(), ChannelError | None)
        peer.close()
    assert time.monotonic() - started < 10
