"""The network driver on a real TAP: what the kernel passes on, segments and refuses."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from tests.networks import BRIDGE, enter_network, run_ip, why_no_namespace
from tests.unit.drivers.net_card import MAC, NO_OFFLOAD, PEER, PLAIN, TIMEOUT_S, Card, build_frame

from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.tap import open_tap
from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.bridged import open_bridged_tap
from duovisor.spec.vm import NicSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")

ETHERTYPE = 0x88B5
ALL = 3  # ETH_P_ALL: before the bridge takes it
NEEDS_CHECKSUM, TCP_V4 = 1, 1


class Host:
    """The host's end of a TAP: frames in and out of the interface, past every protocol."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        self.socket.bind((name, ALL))
        self.socket.settimeout(TIMEOUT_S)

    def receive(self) -> bytes:
        """The next frame from the guest."""
        while (frame := self.socket.recv(1 << 16))[6:14] != MAC + struct.pack(">H", ETHERTYPE):
            pass  # the bridge speaks, too
        return frame


@pytest.fixture
def tap() -> Iterator[tuple[int, Host]]:
    with enter_network():
        descriptor = open_bridged_tap(
            "contract", 0, NicSpec(network="bridge", bridge=BRIDGE), "52:54:00:12:34:56"
        )
        host = Host(interfaces.read_tap_name(descriptor))
        yield descriptor, host
        host.socket.close()


@pytest.mark.parametrize("features", [(1 << 64) - 1, PLAIN])
def test_frames_pass(tap: tuple[int, Host], features: int) -> None:
    descriptor, host = tap
    card = Card(NetDevice(open_tap(descriptor), mac=MAC), features=features)
    for size in (46, 1000, 1486):
        card.send(build_frame(b"a" * size))
        assert host.receive() == build_frame(b"a" * size)
        back = build_frame(b"b" * size, source=PEER, target=MAC)
        host.socket.send(back)
        while (got := card.receive()[1])[12:14] != back[12:14]:
            pass  # the bridge speaks, too
        assert got == back
    card.close()


def test_headers_that_make_no_sense_are_dropped(tap: tuple[int, Host]) -> None:
    descriptor, host = tap
    card = Card(NetDevice(open_tap(descriptor), mac=MAC))
    nonsense = [
        struct.pack("<BBHHHHH", NEEDS_CHECKSUM, 0, 0, 0, 60000, 16, 0),  # a checksum behind the end
        struct.pack("<BBHHHHH", 0, TCP_V4, 60000, 1448, 0, 0, 0),  # headers longer than the frame
        struct.pack("<BBHHHHH", NEEDS_CHECKSUM, 0x7F, 54, 1448, 34, 16, 0),  # segments of no kind
        struct.pack("<BBHHHHH", NEEDS_CHECKSUM, TCP_V4, 54, 0, 34, 16, 0),  # segments of nothing
        b"\xff" * 12,
    ]
    for header in nonsense:
        card.send(build_frame(b"x" * 100), header=header)
    dropped = card.count("sent_dropped")
    assert isinstance(dropped, int)
    assert dropped >= 4
    card.send(build_frame(b"sound"), header=NO_OFFLOAD)
    while not host.receive().endswith(b"sound"):
        pass
    card.close()


def test_a_tap_that_is_down_drops(tap: tuple[int, Host]) -> None:
    descriptor, _ = tap
    card = Card(NetDevice(open_tap(descriptor), mac=MAC))
    run_ip("link", "set", interfaces.read_tap_name(descriptor), "down")
    card.send(build_frame(b"nowhere"))
    assert card.count("sent_dropped") == 1
    card.close()
