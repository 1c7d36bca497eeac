"""Packets: what goes in comes out, and what is no packet is an error that keeps no descriptor."""

from __future__ import annotations

import array
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.drivers.control import (
    MAX_DESCRIPTORS,
    PACKET_BYTES,
    Packet,
    receive_packet,
    send_packet,
)
from duovisor.controlling.drivers.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def send_raw(connected: socket.socket, data: bytes, descriptors: int = 0) -> None:
    rights = array.array("i", [connected.fileno()] * descriptors)
    connected.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else [])


def test_a_packet_arrives_with_its_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    before = count_descriptors()
    send_packet(ours, {"do": "x", "descriptors": ["a", "b"]}, (0, 1))
    packet = receive_packet(theirs)
    assert packet is not None
    assert packet.message["do"] == "x"
    taken = packet.take_descriptors()
    assert list(taken) == ["a", "b"]
    assert not any(os.get_inheritable(descriptor) for descriptor in taken.values())
    packet.close()
    for descriptor in taken.values():
        os.close(descriptor)
    assert count_descriptors() == before


def test_nothing_there_and_nobody_there(pair: Pair) -> None:
    ours, theirs = pair
    assert receive_packet(theirs) is None
    ours.close()
    with pytest.raises(EOFError):
        receive_packet(theirs)
    with pytest.raises(BrokenPipeError):
        send_packet(theirs, {})


def test_sending_never_waits(pair: Pair) -> None:
    def send_for_ever() -> None:
        while True:
            send_packet(pair[0], {"x": "y" * 1000})

    with pytest.raises(BlockingIOError):
        send_for_ever()
    with pytest.raises(DriverError, match="more than 65536"):
        send_packet(pair[0], {"x": "y" * PACKET_BYTES})


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        (b"{", 2), (b"[]", 2), (b"5", 1), (b"\xff\xfe", 1), (b"[" * 50_000, 1),
        (b" " * (PACKET_BYTES + 1), 1), (b"{}", MAX_DESCRIPTORS + 1), (b"{}", 200), (b"{}NaN", 1),
    ],
)  # fmt: skip
def test_what_is_no_packet_keeps_no_descriptor(pair: Pair, data: bytes, descriptors: int) -> None:
    ours, theirs = pair
    before = count_descriptors()
    send_raw(ours, data, descriptors)
    with pytest.raises(DriverError):
        receive_packet(theirs)
    assert count_descriptors() == before


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_packet_or_an_error(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_raw(ours, data)
        try:
            packet = receive_packet(theirs)
        except DriverError:
            return
        assert packet is not None
        assert packet.message == json.loads(data)


@pytest.mark.parametrize("names", ["a", ["a"], ["a", "a"], ["a", 5], ["a", "b", "c"], {"a": 1}, None])
def test_names_must_match_the_descriptors(names: object) -> None:
    descriptors = [os.dup(0), os.dup(0)]
    packet = Packet({"descriptors": names}, descriptors)
    before = count_descriptors()
    with pytest.raises(DriverError):
        packet.take_descriptors()
    packet.close()
    assert count_descriptors() == before - 2
