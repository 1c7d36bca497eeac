"""Hostile front ends: every request with wrong numbers, descriptors or order ends the connection, cleanly."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.channel.echo_device import EchoDevice

from duovisor.channel import features as bits
from duovisor.channel import messages as m
from duovisor.channel import requests as r
from duovisor.channel.connection import Connection, Message
from duovisor.channel.errors import ChannelError, ProtocolError
from duovisor.channel.messages import Request
from duovisor.channel.session import Session
from duovisor.channel.virtqueue import VRING_FLAG_LOG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.ring import Ring

pytestmark = pytest.mark.usefixtures("no_leak")

MEMORY_BYTES = 0x10000
USER = 0x7000_0000


class NoEvents:
    """Nobody works on the queues."""

    def __init__(self) -> None:
        self.started = 0

    def queue_started(self, ring: Ring) -> None:
        self.started += 1

    def queue_stopping(self, ring: Ring) -> None:
        self.started -= 1


class Peer:
    """A session with messages put straight into it; descriptors are made as needed."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.events = NoEvents()
        self.session = Session(Connection(theirs), EchoDevice(queues=2), self.events)
        self.connection = Connection(self.socket)

    def send(self, request: int, payload: bytes = b"", *descriptors: int, flags: int = 0) -> None:
        self.session.serve_message(Message(request, flags, payload, list(descriptors)))

    def set_memory(self) -> None:
        self.send(
            Request.SET_MEM_TABLE,
            m.build_memory_table([m.RegionDescription(0, MEMORY_BYTES, USER, 0)]),
            memory_file(),
        )

    def set_up(self, index: int = 0) -> None:
        self.set_memory()
        self.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1 | bits.PROTOCOL_FEATURES))
        self.send(Request.SET_VRING_NUM, m.build_vring_state(index, 8))
        self.send(Request.SET_VRING_ADDR, m.build_vring_address(ring_at(index, USER)))
        self.send(Request.SET_VRING_KICK, m.build_u64(index), os.eventfd(0))
        self.send(Request.SET_VRING_CALL, m.build_u64(index), os.eventfd(0))
        self.send(Request.SET_VRING_ENABLE, m.build_vring_state(index, 1))

    def answer(self) -> Message:
        return self.connection.wait(1)

    def close(self) -> None:
        self.session.close()
        self.session.connection.close()
        self.connection.close()


def memory_file(size: int = MEMORY_BYTES) -> int:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, size)
    return descriptor


def ring_at(index: int, user: int) -> m.VringAddress:
    return m.VringAddress(index, 0, user, user + 0x200, user + 0x100, 0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def test_a_queue_starts_when_all_is_known(peer: Peer) -> None:
    peer.set_up()
    assert peer.events.started == 1
    peer.send(Request.GET_VRING_BASE, m.build_vring_state(0, 0))
    assert peer.events.started == 0
    assert m.parse_vring_state(peer.answer().payload) == (0, 0)


def test_the_used_ring_is_marked_when_a_queue_starts(peer: Peer) -> None:
    """The last back end may have died between storing to it and marking it."""
    log = memory_file()
    peer.send(Request.SET_LOG_BASE, m.build_log(8, 0), os.dup(log))
    peer.set_up()
    peer.send(Request.GET_VRING_BASE, m.build_vring_state(0, 0))
    peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1 | bits.PROTOCOL_FEATURES | bits.LOG_ALL))
    logged = m.VringAddress(0, VRING_FLAG_LOG, USER, USER + 0x200, USER + 0x100, 0x3100)
    peer.send(Request.SET_VRING_ADDR, m.build_vring_address(logged))
    assert os.pread(log, 8, 0) == bytes(8)
    peer.send(Request.SET_VRING_KICK, m.build_u64(0), os.eventfd(0))
    assert peer.events.started == 1
    assert os.pread(log, 8, 0) == (1 << 3).to_bytes(8, "little")
    os.close(log)


def test_disabling_stops_and_enabling_starts_again(peer: Peer) -> None:
    peer.set_up()
    peer.send(Request.SET_VRING_ENABLE, m.build_vring_state(0, 0))
    assert peer.events.started == 0
    peer.send(Request.SET_VRING_ENABLE, m.build_vring_state(0, 1))
    assert peer.events.started == 1


def test_features_that_the_vmm_negotiated_for_itself_are_ignored(peer: Peer) -> None:
    ring_reset = 1 << 40
    peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1 | ring_reset))
    assert peer.session.rings.features == bits.VERSION_1


def test_acknowledgements_say_how_it_went(peer: Peer) -> None:
    peer.send(Request.SET_OWNER, flags=m.FLAG_NEED_REPLY)
    assert m.parse_u64(peer.answer().payload) == 0
    with pytest.raises(ProtocolError):
        peer.send(Request.SET_VRING_NUM, m.build_vring_state(0, 3), flags=m.FLAG_NEED_REPLY)
    assert m.parse_u64(peer.answer().payload) == 1


@pytest.mark.parametrize("size", [20, 24])
def test_the_inflight_buffer_is_answered_in_the_size_of_the_question(peer: Peer, size: int) -> None:
    payload = m.build_inflight(m.InflightDescription(0, 0, 2, 8))[:size]
    peer.send(Request.GET_INFLIGHT_FD, payload, flags=m.FLAG_NEED_REPLY)
    message = peer.answer()
    assert len(message.payload) == size
    description = m.parse_inflight(message.payload)
    descriptor = message.take_descriptor()
    assert os.fstat(descriptor).st_size == description.mmap_size
    assert peer.connection.receive() is None  # no acknowledgement in addition
    peer.send(Request.SET_INFLIGHT_FD, message.payload, descriptor)


REFUSED = [
    (0, b"", "request 0"),
    (23, m.build_vring_state(0, 0), "request 23"),
    (4_000_000_000, b"", "request 4000000000"),
    (Request.SET_FEATURES, m.build_u64(bits.RING_PACKED), "features"),
    (Request.SET_FEATURES, m.build_u64(bits.ACCESS_PLATFORM), "features"),
    (Request.SET_PROTOCOL_FEATURES, m.build_u64(1 << 63), "protocol features"),
    (Request.SET_VRING_NUM, m.build_vring_state(2, 8), "queue 2 does not exist"),
    (Request.SET_VRING_NUM, m.build_vring_state(2**32 - 1, 8), "does not exist"),
    (Request.SET_VRING_NUM, m.build_vring_state(0, 0), "size 0"),
    (Request.SET_VRING_NUM, m.build_vring_state(0, 100), "size 100"),
    (Request.SET_VRING_NUM, m.build_vring_state(0, 65536), "size 65536"),
    (Request.SET_VRING_BASE, m.build_vring_state(0, 65536), "more than 16 bits"),
    (Request.SET_VRING_BASE, m.build_vring_state(9, 0), "queue 9"),
    (Request.SET_VRING_ADDR, m.build_vring_address(ring_at(5, 0)), "queue 5"),
    (Request.GET_VRING_BASE, m.build_vring_state(5, 0), "queue 5"),
    (Request.SET_VRING_ENABLE, m.build_vring_state(5, 1), "queue 5"),
    (Request.SET_VRING_KICK, m.build_u64(0), "0 descriptors, not 1"),
    (Request.SET_VRING_CALL, m.build_u64(200), "queue 200"),
    (Request.SET_VRING_KICK, m.build_u64(r.VRING_NO_DESCRIPTOR), "polled"),
    (Request.SET_LOG_BASE, m.build_log(4096, 0), "0 descriptors"),
    (Request.SET_LOG_FD, b"", "0 descriptors"),
    (Request.SET_MEM_TABLE, m.build_memory_table([m.RegionDescription(0, 1, 0, 0)]), "0 descriptors, not 1"),
    (Request.ADD_MEM_REG, m.build_memory_region(m.RegionDescription(0, 1, 0, 0)), "0 descriptors, not 1"),
    (Request.REM_MEM_REG, m.build_memory_region(m.RegionDescription(0, 1, 0, 0)), "no memory region"),
    (Request.GET_CONFIG, m.build_config(250, 0, bytes(7)), "beyond 256"),
    (Request.SET_CONFIG, m.build_config(4, 0, b"x"), "did not negotiate"),
    (Request.GET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 3, 8)), "3 queues"),
    (Request.GET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 1, 0)), "of 0 entries"),
    (Request.SET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 1, 8)), "0 descriptors"),
]


@pytest.mark.parametrize(("request_number", "payload", "said"), REFUSED)
def test_wrong_messages_are_refused(peer: Peer, request_number: int, payload: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        peer.send(request_number, payload)


@pytest.mark.parametrize(
    "request_number", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
def test_a_file_is_no_event_descriptor(peer: Peer, request_number: Request) -> None:
    with pytest.raises(ProtocolError, match="not an event descriptor"):
        peer.send(request_number, m.build_u64(0), memory_file())


@pytest.mark.parametrize("request_number", [Request.SET_VRING_NUM, Request.SET_VRING_BASE])
def test_a_running_queue_keeps_its_numbers(peer: Peer, request_number: Request) -> None:
    peer.set_up()
    with pytest.raises(ProtocolError, match="while it runs"):
        peer.send(request_number, m.build_vring_state(0, 16))


def test_a_running_queue_keeps_its_inflight_log(peer: Peer) -> None:
    peer.set_up()
    with pytest.raises(ProtocolError, match="while queues run"):
        peer.send(
            Request.SET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(4096, 0, 1, 8)), memory_file()
        )


def test_an_inflight_log_without_a_queue_is_refused(peer: Peer) -> None:
    peer.send(Request.SET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(4096, 0, 1, 8)), memory_file())
    with pytest.raises(ProtocolError, match="has 1 queues, no queue 1"):
        peer.set_up(index=1)


def test_a_queue_larger_than_its_inflight_log_works_without(peer: Peer) -> None:
    """SeaBIOS makes a queue of 256 entries on a device of 128, for which QEMU made the log."""
    peer.send(Request.SET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(4096, 0, 1, 4)), memory_file())
    peer.set_up()
    assert peer.events.started == 1
    assert peer.session.rings.inflight is not None
    assert not peer.session.rings.inflight.regions[0].in_use


def test_rings_outside_memory_are_refused(peer: Peer) -> None:
    peer.set_memory()
    peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1))
    peer.send(Request.SET_VRING_NUM, m.build_vring_state(0, 8))
    peer.send(Request.SET_VRING_ADDR, m.build_vring_address(ring_at(0, USER + MEMORY_BYTES)))
    with pytest.raises(ChannelError, match="not in one memory region"):
        peer.send(Request.SET_VRING_KICK, m.build_u64(0), os.eventfd(0))


def test_memory_taken_away_under_a_running_ring_is_refused(peer: Peer) -> None:
    peer.set_up()
    with pytest.raises(ChannelError, match="not in one memory region"):
        peer.send(Request.SET_MEM_TABLE, m.build_memory_table([]))


def test_memory_may_change_under_a_running_ring(peer: Peer) -> None:
    peer.set_up()
    peer.set_memory()
    region = m.RegionDescription(0x100000, 0x1000, 0x9000_0000, 0)
    peer.send(Request.ADD_MEM_REG, m.build_memory_region(region), memory_file())
    peer.send(Request.REM_MEM_REG, m.build_memory_region(region), os.eventfd(0))  # a descriptor too many
    assert len(peer.session.memory.regions) == 1


def test_a_log_smaller_than_memory_is_refused(peer: Peer) -> None:
    peer.send(
        Request.SET_MEM_TABLE,
        m.build_memory_table([m.RegionDescription(1 << 30, MEMORY_BYTES, USER, 0)]),
        memory_file(),
    )
    peer.send(Request.SET_LOG_BASE, m.build_log(4096, 0), memory_file())
    with pytest.raises(ProtocolError, match="ends before the guest's memory"):
        peer.send(Request.SET_FEATURES, m.build_u64(bits.VERSION_1 | bits.LOG_ALL))


def test_a_log_descriptor_is_kept_until_the_next(peer: Peer) -> None:
    for _ in range(3):
        peer.send(Request.SET_LOG_FD, b"", os.eventfd(0))


requests = st.one_of(st.sampled_from(sorted(Request)), st.integers(0, 60))
numbers = st.one_of(st.integers(0, 12), st.integers(0, 2**16), st.integers(0, 2**32 - 1))


def build_region(guest: int, size: int, user: int, offset: int) -> bytes:
    return m.build_memory_table([m.RegionDescription(guest, size, user, offset)])


def build_inflight(size: int, offset: int, queues: int, queue_size: int) -> bytes:
    return m.build_inflight(m.InflightDescription(size, offset, queues, queue_size))


def build_address(index: int, at: int) -> bytes:
    return m.build_vring_address(ring_at(index, USER + at))


payloads = st.one_of(
    st.binary(max_size=64),
    st.builds(m.build_vring_state, numbers, numbers),
    st.builds(m.build_u64, st.one_of(numbers, st.integers(0, 2**64 - 1))),
    st.builds(build_address, numbers, numbers),
    st.builds(build_region, numbers, numbers, numbers, numbers),
    st.builds(build_inflight, numbers, numbers, st.integers(0, 3), st.integers(0, 65535)),
    st.builds(m.build_log, numbers, numbers),
)
kinds = st.lists(st.sampled_from(["memory", "event", "closed socket"]), max_size=2)


def make_descriptor(kind: str) -> int:
    if kind == "memory":
        return memory_file()
    if kind == "event":
        return os.eventfd(0)
    first, second = socket.socketpair()
    second.close()
    return first.detach()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(requests, payloads, kinds, st.sampled_from([0, 8])), max_size=12), st.booleans())
def test_any_sequence_of_messages_ends_in_order(
    sequence: list[tuple[int, bytes, list[str], int]], set_up: bool
) -> None:
    peer = Peer()
    if set_up:
        peer.set_up()
    try:
        for request, payload, wanted, flags in sequence:
            peer.send(request, payload, *map(make_descriptor, wanted), flags=flags)
            while (answer := peer.connection.receive()) is not None:
                answer.close()
    except ChannelError:
        pass  # whatever it is, it is ours
    while (answer := peer.connection.receive()) is not None:
        answer.close()
    peer.close()
