"""The parts of succession alone: loop, page, probe of a hang, and snapshots that nobody can go on with."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import EchoDevice, LateDevice, RunningBackend
from tests.unit.channel.test_backend import EchoRequest
from tests.unit.channel.test_session import Peer

from duovisor.channel.backend import Backend
from duovisor.channel.errors import ChannelError, ProtocolError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.frontend import FrontEnd
from duovisor.channel.hang_probe import LOOKS_MIN, HangProbe
from duovisor.channel.page import PAGE_BYTES, Page, create_page
from duovisor.channel.snapshot import ANSWER, Snapshot, receive_snapshot, send_snapshot
from duovisor.channel.standby import Outcome, Standby

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_leak")


# The loop


def test_the_loop_calls_back_until_it_is_told_otherwise() -> None:
    loop, calls = EventLoop(), []
    level, edge = os.eventfd(1), os.eventfd(1)
    loop.watch(level, lambda: calls.append("level"))
    loop.watch(edge, lambda: calls.append("edge"), edge=True)
    loop.turn()
    loop.turn()
    assert sorted(calls) == ["edge", "level", "level"]
    loop.unwatch(level)
    loop.unwatch(level)
    loop.turn(0)
    assert len(calls) == 3
    for _ in range(2):
        loop.wake()
        loop.turn()
    loop.close()
    for descriptor in (level, edge):
        os.close(descriptor)


def test_an_event_of_something_just_forgotten_is_dropped() -> None:
    loop, calls = EventLoop(), []
    both = [os.eventfd(1) for _ in range(2)]

    def forget_all() -> None:
        calls.append(1)
        for descriptor in both:
            loop.unwatch(descriptor)

    for descriptor in both:
        loop.watch(descriptor, forget_all)
    loop.turn()
    assert calls == [1]
    loop.close()
    for descriptor in both:
        os.close(descriptor)


# The page


def test_a_page_is_shared_and_keeps_its_size() -> None:
    descriptor = create_page()
    one, other = Page.open(descriptor), Page.open(descriptor)
    one.busy = True
    one.count_change()
    one.count_completed(5)
    assert (other.busy, other.serial, other.completed) == (True, 1, 5)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_what_is_no_page_is_refused() -> None:
    small = os.memfd_create("small")
    os.ftruncate(small, PAGE_BYTES - 1)
    for descriptor in (small, os.eventfd(0)):
        with pytest.raises(ChannelError, match="no page"):
            Page.open(descriptor)
        os.close(descriptor)


# Snapshots


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    made.set_up()
    yield made
    made.close()


def take_snapshot(peer: Peer) -> Snapshot:
    """The state of a session as its successor gets it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    send_snapshot(ours, peer.session.capture())
    ours.close()
    snapshot = receive_snapshot(theirs)
    theirs.close()
    assert snapshot is not None
    return snapshot


def test_a_restored_session_says_what_its_predecessor_said(peer: Peer) -> None:
    peer.session.device.write_config(4, b"\x07", migrating=False)
    first, second = take_snapshot(peer), take_snapshot(peer)
    device = EchoDevice(queues=2)
    backend = Backend.resume(first, device)
    restored = backend.session.capture()
    for name in ("features", "protocol_features", "status"):
        assert getattr(restored, name) == getattr(second, name)
    assert [(ring.size, ring.base, ring.enabled) for ring in restored.rings] == [
        (ring.size, ring.base, ring.enabled) for ring in second.rings
    ]
    assert len(restored.descriptors) == len(second.descriptors)
    assert device.switch == 0  # nothing is touched before it runs
    assert [ring.queue.running for ring in backend.session.rings.all] == [False, False]
    assert [ring.queue.index for ring in backend.session.begin()] == [0]
    assert device.switch == 7
    assert backend.statistics()["inherited"] is True
    backend.close()
    second.close()


def not_a_socket(snapshot: Snapshot) -> None:
    assert snapshot.connection is not None
    os.close(snapshot.connection)
    snapshot.connection = os.eventfd(0)


def of_another_kind(snapshot: Snapshot) -> None:
    assert snapshot.connection is not None
    os.close(snapshot.connection)
    snapshot.connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def foreign_features(snapshot: Snapshot) -> None:
    snapshot.features |= 1 << 40


def fewer_rings(snapshot: Snapshot) -> None:
    snapshot.rings.pop()


def odd_size(snapshot: Snapshot) -> None:
    snapshot.rings[0].size = 3


def memory_beyond_its_file(snapshot: Snapshot) -> None:
    snapshot.holdings.regions[0][0].size = 1 << 40


def kick_of_another_kind(snapshot: Snapshot) -> None:
    kick = snapshot.rings[0].kick
    assert kick is not None
    os.close(kick)
    snapshot.rings[0].kick = os.memfd_create("no event")


def own_log_too_small(snapshot: Snapshot) -> None:
    log = snapshot.rings[0].own_log
    assert log is not None
    os.close(log)
    snapshot.rings[0].own_log = os.memfd_create("small")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (not_a_socket, "no socket"),
        (of_another_kind, "no Unix stream socket"),
        (foreign_features, "features 0x10000000000, which are missing"),
        (fewer_rings, "1 queues, this device 2"),
        (odd_size, "size 3"),
        (memory_beyond_its_file, "ends at"),
        (kick_of_another_kind, "not an event descriptor"),
        (own_log_too_small, "behind the end"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    peer: Peer, spoil: Callable[[Snapshot], None], said: str
) -> None:
    snapshot = take_snapshot(peer)
    spoil(snapshot)
    with pytest.raises(ChannelError, match=said):
        Backend.resume(snapshot, EchoDevice(queues=2))


def test_a_snapshot_serves_once(peer: Peer) -> None:
    snapshot = take_snapshot(peer)
    Backend.resume(snapshot, EchoDevice(queues=2)).close()
    with pytest.raises(ChannelError, match="used before"):
        Backend.resume(snapshot, EchoDevice(queues=2))


def test_a_standby_driver_ends_with_the_error_of_a_bad_snapshot(peer: Peer) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    standby = Standby(EchoDevice(queues=5), page=Page.private(), succession=theirs, on_hang=lambda *_: None)
    send_snapshot(ours, peer.session.capture())
    with pytest.raises(ProtocolError, match="2 queues, this device 5"):
        standby.run()
    ours.close()


def test_a_standby_driver_without_anyone_to_follow_is_dropped() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    standby = Standby(EchoDevice(), page=Page.private(), succession=theirs, on_hang=lambda *_: None)
    ours.close()
    assert standby.run() is Outcome.DROPPED
    assert not standby.ready


def test_a_standby_driver_can_be_stopped() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    standby = Standby(EchoDevice(), page=Page.private(), succession=theirs, on_hang=lambda *_: None)
    standby.stop()
    assert standby.run() is Outcome.STOPPED
    ours.close()


# A hand-over that fails at the last moment


class ForgetfulDevice(LateDevice):
    """Cannot finish anything when it is drained; by then its successor is gone."""

    def __init__(self, successor: socket.socket) -> None:
        super().__init__()
        self.successor = successor

    def drain(self) -> None:
        self.kept.clear()
        self.successor.close()


def test_what_was_forgotten_for_a_hand_over_is_done_when_it_fails() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(ANSWER)
    device = ForgetfulDevice(ours)
    running = RunningBackend(device)
    order = os.eventfd(0)
    outcomes: list[bool] = []

    def obey() -> None:
        os.eventfd_read(order)
        running.backend.add_successor("spare", theirs)
        outcomes.append(running.backend.hand_over("spare"))

    running.backend.watch(order, obey)
    with FrontEnd(memory_bytes=1 << 20, queue_size=8) as front:
        front.connect(running.peer)
        requests = [EchoRequest(front, b"r%d" % index) for index in range(3)]
        for request in requests:
            request.submit()
            assert device.arrived.acquire(timeout=60)
        os.eventfd_write(order, 1)
        for _ in requests:
            assert device.arrived.acquire(timeout=60)
        assert outcomes == [False]
        device.answer()
        reaped: list[int] = []
        while len(reaped) < len(requests):
            reaped += [head for head, _ in front.queues[0].wait(5)]
        assert sorted(reaped) == sorted(request.head for request in requests)
        assert [bytes(request.answer) for request in requests] == [b"0r", b"1r", b"2r"]
    assert running.close() is None
    os.close(order)


# The probe of a hang


def test_a_connection_is_accused_after_its_time_and_only_once() -> None:
    said: list[tuple[int | None, float]] = []
    probe = HangProbe(10.0, lambda queue, seconds: said.append((queue, seconds)))
    for second in range(30):
        probe.look(float(second), connection_waits=True)
        assert bool(said) == (second >= 10)
    assert said == [(None, 10.0)]
    probe.look(30.0, connection_waits=False)
    for second in range(31, 60):
        probe.look(float(second), connection_waits=True)
    assert said == [(None, 10.0), (None, 10.0)]


def test_who_did_not_run_does_not_accuse() -> None:
    said: list[int | None] = []
    probe = HangProbe(1.0, lambda queue, _: said.append(queue))
    probe.look(0.0, connection_waits=True)
    for look in range(LOOKS_MIN - 1):
        probe.look(1000.0 + look, connection_waits=True)
        assert said == []
    probe.look(2000.0, connection_waits=True)
    assert said == [None]
