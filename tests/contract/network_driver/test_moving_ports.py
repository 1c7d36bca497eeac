"""The bridge's side of a card that moves: its place, its port, the groups it has joined, and refusals."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.contract.network_driver import flood
from tests.contract.network_driver.card_moves import (
    MAC,
    enter_quiet_network,
    find_place,
    find_places,
    open_sender,
    open_taps,
    read_all,
    run_bridge,
    speak,
)
from tests.networks import BRIDGE, run_ip, why_no_namespace

from duovisor.controlling.errors import HostLacksError, NetworkError
from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.moving import prepare_move

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "239.1.2.3"
CAP_NET_RAW = 13


pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with enter_quiet_network():
        yield


def build_packet(protocol: int, target: str, payload: bytes, *, option: bytes = b"") -> bytes:
    """An IPv4 packet of the guest's or the sender's to a group, in a frame."""
    length = 20 + len(option)
    head = struct.pack(">BBHHHBBH", 0x40 | length // 4, 0, length + len(payload), 0, 0, 1, protocol, 0)
    head += socket.inet_aton("10.77.0.2") + socket.inet_aton(target) + option
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    address = socket.inet_aton(target)
    ethernet = b"\x01\x00\x5e" + bytes([address[1] & 127]) + address[2:] + flood.GUEST + b"\x08\x00"
    return flood.HEADER + ethernet + head + payload


def build_report(group: str) -> bytes:
    """IGMPv2: this guest has joined a group."""
    body = struct.pack(">BBH", 0x16, 0, 0) + socket.inet_aton(group)
    body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    return build_packet(2, group, body, option=b"\x94\x04\x00\x00")


def build_datagram(group: str, payload: bytes) -> bytes:
    """UDP without a checksum."""
    return build_packet(17, group, struct.pack(">HHHH", 5000, 5000, 8 + len(payload), 0) + payload)


def checksum(data: bytes) -> int:
    words = sum(struct.unpack(f">{len(data) // 2}H", data))
    folded: int = (words & 0xFFFF) + (words >> 16)
    return ~folded & 0xFFFF


def why_no_vlans() -> str:
    """Have the bridge filter VLANs; what keeps it from that, empty when nothing does."""
    try:
        run_ip("link", "set", BRIDGE, "type", "bridge", "vlan_filtering", "1")
    except subprocess.CalledProcessError as error:
        return f"this kernel's bridge has no VLANs: {error.stderr.strip()}"
    return ""


def count(frames: list[bytes]) -> int:
    return sum(flood.find_number(each) is not None for each in frames)


@contextmanager
def without_raw_sockets() -> Iterator[None]:
    """This thread has no CAP_NET_RAW meanwhile (capset(2), version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, words) == 0
    words[0] &= ~(1 << CAP_NET_RAW)
    assert libc.capset(header, words) == 0
    try:
        yield
    finally:
        words[0] |= 1 << CAP_NET_RAW
        assert libc.capset(header, words) == 0


def test_the_place_is_learned_again_as_ever() -> None:
    with open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        names = [interfaces.read_tap_name(each) for each in (old, new)]
        assert find_place()["ifname"] == names[0]  # though the guest has said nothing yet
        speak(old)
        move.divert()
        speak(old)
        assert find_place()["ifname"] == names[1]
        move.settle()
        place = find_place()
        assert place["ifname"] == names[1]
        assert place.get("state", "") == ""  # neither static nor permanent: it ages
        assert "sticky" not in place["flags"]  # type: ignore[operator]
        speak(old)
        assert find_place()["ifname"] == names[0]


def test_a_prepared_port_gets_nothing() -> None:
    with open_sender() as sender, open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        time.sleep(1.5)  # the kernel has told of the new interface: the port would have been switched on
        for number in range(100):
            os.write(sender, flood.build_frame(number))
        assert count(read_all(old)) == 100
        assert read_all(new) == []
        move.divert()
        for number in range(100):
            os.write(sender, flood.build_frame(number))
        assert count(read_all(new)) == 100
        assert count(read_all(old)) == 2  # the broadcasts


def test_settings_of_the_port_go_with_the_card() -> None:
    with open_taps() as (old, new):
        names = [interfaces.read_tap_name(each) for each in (old, new)]
        run_bridge("link", "set", "dev", names[0], "isolated", "on", "neigh_suppress", "on", "flood", "off")
        with closing(prepare_move(old, new, MAC)):
            pass
        shown = run_bridge("-d", "link", "show", "dev", names[1])
        assert all(each in shown for each in ("isolated on", "neigh_suppress on", " flood off"))


def test_vlans_of_the_port_go_with_the_card() -> None:
    if why := why_no_vlans():
        pytest.skip(why)
    with open_taps() as (old, new):
        names = [interfaces.read_tap_name(each) for each in (old, new)]
        run_bridge("vlan", "add", "dev", names[0], "vid", "10", "pvid", "untagged")
        run_bridge("vlan", "add", "dev", names[0], "vid", "20")
        run_bridge("vlan", "del", "dev", names[0], "vid", "1")
        speak(old)
        with closing(prepare_move(old, new, MAC)) as move:
            move.divert()
            move.settle()
        vlans = [run_bridge("-c", "vlan", "show", "dev", name).replace(name, "") for name in names]
        assert vlans[0] == vlans[1]
        places = find_places()
        assert {each["ifname"] for each in places} == {names[1]}
        assert 10 in {each.get("vlan") for each in places}


def test_groups_that_the_guest_has_joined_still_reach_it() -> None:
    run_ip(
        "link", "set", BRIDGE, "type", "bridge", "mcast_querier", "1", "mcast_query_response_interval", "10"
    )
    with open_sender() as sender, open_taps() as (old, new):
        time.sleep(0.5)  # the bridge asks, and then believes what it has heard
        os.write(old, build_report(GROUP))
        with closing(prepare_move(old, new, MAC)) as move:
            move.divert()
            move.settle()
        assert "grp " + GROUP not in run_bridge("mdb", "show", "dev", interfaces.read_tap_name(new))
        os.write(sender, build_datagram(GROUP, b"to the group"))
        assert any(each.endswith(b"to the group") for each in read_all(new))


def test_a_bridge_with_stp_is_refused() -> None:
    run_ip("link", "set", BRIDGE, "type", "bridge", "stp_state", "1")
    with open_taps() as (old, new), pytest.raises(NetworkError, match="runs STP"):
        prepare_move(old, new, MAC)


def test_without_the_right_nothing_is_touched() -> None:
    with open_taps() as (old, new):
        before = run_bridge("-d", "link")
        with without_raw_sockets(), pytest.raises(HostLacksError, match="CAP_NET_RAW"):
            prepare_move(old, new, MAC)
        assert run_bridge("-d", "link") == before


def test_a_reader_that_takes_no_frame_is_given_none() -> None:
    with open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        asyncio.run(move.occupy())
        assert read_all(new) == []
