"""Snapshots survive their journey, and nonsense from a sibling process is refused without a leak."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duovisor.channel.errors import ChannelError, PeerClosedError
from duovisor.channel.holdings import Holdings
from duovisor.channel.messages import InflightDescription, RegionDescription, VringAddress
from duovisor.channel.ring_state import RingState
from duovisor.channel.snapshot import (
    MAGIC,
    PACKET_DESCRIPTORS,
    Kind,
    Snapshot,
    SnapshotReceiver,
    receive_snapshot,
    send_snapshot,
)
from duovisor.channel.snapshot_payload import build_payload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.usefixtures("no_leak")

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()


def numbered() -> int:
    """A descriptor that can be told from others: a memory file with a size of its own."""
    descriptor = os.memfd_create("numbered")
    os.ftruncate(descriptor, descriptor + 1)
    return descriptor


def make_ring(index: int, *, full: bool = True) -> RingState:
    ring = RingState()
    ring.size, ring.base = 256, index
    if full:
        ring.address = VringAddress(index, 1, 2**63, 3, 4, 5)
        ring.enabled = ring.running = True
        ring.kick, ring.call, ring.error, ring.own_log = (numbered() for _ in range(4))
    else:
        ring.failed = True
    return ring


def make_snapshot(regions: int = 2, rings: int = 3) -> Snapshot:
    held = Holdings()
    held.regions = [
        (RegionDescription(0x1000 * number, 0x1000, 2**62 + number, number), numbered())
        for number in range(regions)
    ]
    held.inflight = (InflightDescription(1 << 20, 4096, 2, 128), numbered())
    held.log = (4096, 8, numbered())
    held.log_signal = numbered()
    snapshot = Snapshot(numbered(), held, [make_ring(index, full=index != 1) for index in range(rings)])
    snapshot.features, snapshot.protocol_features, snapshot.status = 2**64 - 1, 0x1234, 15
    snapshot.device_state, snapshot.serial = b"\x01state", 77
    return snapshot


def sizes(snapshot: Snapshot) -> list[int]:
    return [os.fstat(descriptor).st_size for descriptor in snapshot.descriptors]


@pytest.mark.parametrize(("regions", "rings"), [(0, 1), (2, 3), (8, 64), (64, 256)])
def test_everything_arrives(pair: Pair, regions: int, rings: int) -> None:
    snapshot = make_snapshot(regions, rings)
    for kind in Kind:
        send_snapshot(pair[0], snapshot, kind)
    for kind in Kind:
        arrived = receive_snapshot(pair[1])
        assert arrived is not None
        assert sizes(arrived) == sizes(snapshot)
        assert build_payload(arrived) == build_payload(snapshot)
        assert (arrived.serial, arrived.final, arrived.probe) == (77, kind is Kind.FINAL, kind is Kind.PROBE)
        assert arrived.device_state == b"\x01state"
        assert all(not os.get_inheritable(descriptor) for descriptor in arrived.descriptors)
        arrived.close()
    assert receive_snapshot(pair[1]) is None
    snapshot.close()


def test_parts_of_a_snapshot_are_kept_until_it_is_complete(pair: Pair) -> None:
    snapshot = make_snapshot(8, 128)
    assert len(snapshot.descriptors) > 2 * PACKET_DESCRIPTORS
    copied, middle = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_snapshot(copied, snapshot)
    receiver = SnapshotReceiver(pair[1])
    while packet := forward(middle, pair[0]):
        arrived = receiver.receive()
        assert (arrived is None) == (packet == b"more")
    assert arrived is not None
    arrived.close()
    for left_over in (copied, middle):
        left_over.close()
    snapshot.close()


def forward(source: socket.socket, target: socket.socket) -> bytes:
    """Pass one packet on; what it was: ``more``, ``last`` or nothing."""
    try:
        source.setblocking(False)
        data, descriptors, _, _ = socket.recv_fds(source, 1 << 16, 253)
    except BlockingIOError:
        return b""
    socket.send_fds(target, [data], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return b"more" if len(descriptors) == PACKET_DESCRIPTORS else b"last"


def test_a_sender_that_dies_half_way_leaves_nothing_behind(pair: Pair) -> None:
    snapshot = make_snapshot(8, 128)
    copied, middle = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_snapshot(copied, snapshot)
    assert forward(middle, pair[0]) == b"more"
    receiver = SnapshotReceiver(pair[1])
    assert receiver.receive() is None
    pair[0].close()
    with pytest.raises(PeerClosedError):
        receiver.receive()
    for left_over in (copied, middle):
        left_over.close()
    snapshot.close()


def test_a_successor_that_does_not_read_is_an_error_at_once(pair: Pair) -> None:
    snapshot = make_snapshot()
    with pytest.raises(BlockingIOError):  # noqa: PT012 - how many fit is the kernel's affair
        while True:
            send_snapshot(pair[0], snapshot)
    snapshot.close()


def send_packet(
    sock: socket.socket, *, magic: bytes = MAGIC, kind: int = 0, part: int = 0, expected: int | None = None,
    payload: bytes = b"", descriptors: Sequence[int] = (), cut: int = 1 << 20,
) -> None:  # fmt: skip
    header = (
        magic
        + array.array("I", [kind, part]).tobytes()
        + array.array("Q", [1]).tobytes()
        + array.array("I", [len(descriptors) if expected is None else expected]).tobytes()
    )
    socket.send_fds(sock, [(header + payload)[:cut]], list(descriptors))


def test_what_the_test_builds_is_what_is_sent(pair: Pair) -> None:
    snapshot = make_snapshot()
    send_packet(pair[0], payload=build_payload(snapshot), descriptors=snapshot.descriptors)
    arrived = receive_snapshot(pair[1])
    assert arrived is not None
    arrived.close()
    snapshot.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cut": 10}, "10 bytes is no part"),
        ({"magic": b"duovsnp0"}, "no snapshot of this version"),
        ({"kind": 3}, "kind 3"),
        ({"part": 1}, "part 1"),
        ({"expected": 5000}, "5000 descriptors"),
        ({"expected": 3}, "of 3 descriptors came with"),
        ({"expected": 300}, "of 300 descriptors came with"),
        ({"payload": b""}, "ends after 0 bytes"),
    ],
)
def test_packets_that_cannot_be_are_refused(pair: Pair, settings: dict[str, int], said: str) -> None:
    snapshot = make_snapshot()
    packet = {"payload": build_payload(snapshot), "descriptors": snapshot.descriptors, **settings}
    send_packet(pair[0], **packet)  # type: ignore[arg-type]  # as the table says
    with pytest.raises(ChannelError, match=said):
        receive_snapshot(pair[1])
    snapshot.close()


def test_parts_of_two_snapshots_do_not_mix(pair: Pair) -> None:
    snapshot = make_snapshot(8, 64)
    first, rest = snapshot.descriptors[:PACKET_DESCRIPTORS], snapshot.descriptors[PACKET_DESCRIPTORS:]
    total = len(first) + len(rest)
    send_packet(pair[0], payload=build_payload(snapshot), descriptors=first, expected=total)
    send_packet(pair[0], part=1, kind=1, descriptors=rest, expected=total)
    receiver = SnapshotReceiver(pair[1])
    with pytest.raises(ChannelError, match="another snapshot"):
        receiver.receive()
    snapshot.close()


def test_more_or_less_than_is_named_is_refused(pair: Pair) -> None:
    snapshot = make_snapshot()
    payload = build_payload(snapshot)
    for wrong, descriptors, said in (
        (payload + b"\0", snapshot.descriptors, "more bytes or descriptors"),
        (payload[:-1], snapshot.descriptors, "in the middle"),
        (payload, snapshot.descriptors[:-1], "fewer descriptors"),
        (payload, [*snapshot.descriptors, 0], "more bytes or descriptors"),
    ):
        send_packet(pair[0], payload=wrong, descriptors=descriptors)
        with pytest.raises(ChannelError, match=said):
            receive_snapshot(pair[1])
    snapshot.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_snapshot_or_an_error(pair: Pair, data: st.DataObject) -> None:
    valid = make_snapshot(2, 2)
    try:
        payload = bytearray(build_payload(valid))
        for _ in range(data.draw(st.integers(0, 4))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(payload)) | st.just(len(payload)))
        descriptors = valid.descriptors[: data.draw(st.integers(0, len(valid.descriptors)))]
        send_packet(pair[0], payload=bytes(payload[:cut]), descriptors=descriptors)
        arrived = receive_snapshot(pair[1])
        assert arrived is not None
        arrived.close()
    except ChannelError:
        pass  # the other outcome
    finally:
        valid.close()
