"""A back end in a thread under a front end: all features, stop, resume, death, bad guests."""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import EchoDevice, LateDevice, RunningBackend

from duovisor.channel import features as bits
from duovisor.channel.errors import ChannelError, ProtocolError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.frontend import GUEST_START, FrontEnd
from duovisor.channel.messages import Request, build_u64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.frontend_queue import FrontEndQueue

pytestmark = pytest.mark.usefixtures("no_leak")

ALL = (1 << 64) - 1 & ~bits.LOG_ALL
MEMORY = 1 << 20


class EchoRequest:
    """One prepared echo request."""

    def __init__(self, front: FrontEnd, text: bytes, queue: int = 0) -> None:
        self.queue = front.queues[queue]
        address, view = front.allocate(64)
        view[: len(text)] = text
        table = front.allocate(64)
        self.answer_page = (address + 32) // 4096
        self.answer = view[32 : 32 + len(text)]
        self.head = self.queue.prepare([(address, len(text))], [(address + 32, 32)], table)

    def submit(self) -> None:
        self.queue.submit(self.head)
        self.queue.kick()


def ask(front: FrontEnd, text: bytes, queue: int = 0) -> bytes:
    request = EchoRequest(front, text, queue)
    request.submit()
    assert request.queue.wait(5) == [(request.head, len(text))]
    request.queue.release(request.head)
    return bytes(request.answer)


@pytest.fixture
def running() -> Iterator[RunningBackend]:
    backend = RunningBackend(EchoDevice(queues=2))
    yield backend
    backend.close()


@pytest.fixture
def front(running: RunningBackend) -> Iterator[FrontEnd]:
    with FrontEnd(memory_bytes=MEMORY, queues=2, queue_size=8) as made:
        made.connect(running.peer)
        yield made


@pytest.mark.parametrize("regions", [1, 3, 8])
@pytest.mark.parametrize(
    "without",
    [0, bits.RING_EVENT_IDX, bits.RING_INDIRECT_DESC, bits.RING_EVENT_IDX | bits.RING_INDIRECT_DESC],
)
@pytest.mark.parametrize(
    "protocol", [0, bits.PROTOCOL_REPLY_ACK, bits.PROTOCOL_INFLIGHT_SHMFD, bits.CHANNEL_PROTOCOL_FEATURES]
)
def test_every_way_to_negotiate_works(protocol: int, without: int, regions: int) -> None:
    backend = RunningBackend(EchoDevice(queues=2))
    with FrontEnd(
        memory_bytes=MEMORY, regions=regions, queues=2, queue_size=8,
        features=ALL & ~without, protocol_features=protocol,
    ) as front:  # fmt: skip
        front.connect(backend.peer)
        for turn in range(20):
            text = b"turn %d" % turn
            assert ask(front, text, turn % 2) == text[::-1]
    assert backend.close() is None


def test_without_protocol_features_queues_need_no_enabling() -> None:
    backend = RunningBackend(EchoDevice())
    with FrontEnd(memory_bytes=MEMORY, queue_size=8, features=bits.VERSION_1, protocol_features=0) as front:
        front.connect(backend.peer)
        assert ask(front, b"legacy") == b"ycagel"
    assert backend.close() is None


@pytest.mark.parametrize("poll_us", [0, 100, 1000])
def test_watching_the_queue_changes_nothing_but_time(poll_us: int) -> None:
    backend = RunningBackend(EchoDevice(), poll_us=poll_us)
    with FrontEnd(memory_bytes=MEMORY, queue_size=8) as front:
        front.connect(backend.peer)
        for _ in range(200):
            assert ask(front, b"again") == b"niaga"
    assert backend.close() is None


def test_stop_and_resume_on_one_connection(front: FrontEnd) -> None:
    for turn in range(5):
        assert ask(front, b"x%d" % turn) == b"%dx" % turn
        assert front.stop() == [turn + 1, 0]
        front.resume()


def test_a_stopped_queue_is_left_alone_until_it_starts(front: FrontEnd, running: RunningBackend) -> None:
    front.stop()
    request = EchoRequest(front, b"early")
    request.queue.submit(request.head)
    request.queue.force_kick()
    assert front.get_config(0, 4) == b"echo"  # the back end has had its turn
    assert request.queue.reap() == []
    front.resume()
    assert request.queue.wait(5) == [(request.head, 5)]


def test_stopping_waits_for_what_is_in_flight() -> None:
    device = LateDevice()
    backend = RunningBackend(device)
    with FrontEnd(memory_bytes=MEMORY, queue_size=8) as front:
        front.connect(backend.peer)
        requests = [EchoRequest(front, b"r%d" % index) for index in range(3)]
        for request in requests:
            request.submit()
            assert device.arrived.acquire(timeout=60)
        assert front.stop() == [3]
        assert [head for head, _ in front.queues[0].reap()] == [
            request.head for request in reversed(requests)
        ]
    assert backend.close() is None


def test_requests_complete_out_of_order_and_late() -> None:
    device = LateDevice()
    backend = RunningBackend(device)
    with FrontEnd(memory_bytes=MEMORY, queue_size=8) as front:
        front.connect(backend.peer)
        requests = [EchoRequest(front, b"r%d" % index) for index in range(4)]
        for request in requests:
            request.submit()
            assert device.arrived.acquire(timeout=60)
        device.answer()
        reaped: list[int] = []
        while len(reaped) < 4:
            reaped += [head for head, _ in front.queues[0].wait(5)]
        assert reaped == [request.head for request in reversed(requests)]
        assert [bytes(request.answer) for request in requests] == [b"0r", b"1r", b"2r", b"3r"]
    assert backend.close() is None


def test_a_successor_does_what_was_left_in_flight() -> None:
    first = RunningBackend(LateDevice(queues=2))
    with FrontEnd(memory_bytes=MEMORY, queues=2, queue_size=8) as front:
        front.connect(first.peer)
        requests = [EchoRequest(front, b"r%d" % index, index % 2) for index in range(6)]
        for request in requests:
            request.submit()
            assert isinstance(first.device, LateDevice)
            assert first.device.arrived.acquire(timeout=60)
        front.disconnect()
        assert first.close() is None
        assert front.queues[0].reap() == []
        second = RunningBackend(EchoDevice(queues=2))
        front.connect(second.peer)
        for queue in front.queues:
            assert len(wait_for(queue, 3)) == 3
        assert [bytes(request.answer) for request in requests] == [b"%dr" % index for index in range(6)]
        assert ask(front, b"new", 1) == b"wen"
        front.disconnect()
        assert second.close() is None


def wait_for(queue: FrontEndQueue, count: int) -> list[int]:
    heads: list[int] = []
    while len(heads) < count:
        heads += [head for head, _ in queue.wait(5)]
    return heads


def test_being_told_to_stop_finishes_and_closes() -> None:
    device = LateDevice()
    backend = RunningBackend(device)
    with FrontEnd(memory_bytes=MEMORY, queue_size=8) as front:
        front.connect(backend.peer)
        request = EchoRequest(front, b"last")
        request.submit()
        assert device.arrived.acquire(timeout=60)
        backend.backend.stop()
        assert backend.wait() is None
        assert request.queue.reap() == [(request.head, 4)]
        assert backend.peer.recv(1) == b""
    backend.close()


# Configuration, status, reset


def test_configuration_space(front: FrontEnd, running: RunningBackend) -> None:
    assert front.get_config(0, 5) == b"echo\x00"
    assert front.get_config(2, 60) == b"ho".ljust(60, b"\0")
    front.set_config(4, b"\x07")
    assert front.get_config(4, 1) == b"\x07"
    with pytest.raises(ProtocolError, match="refuses SET_CONFIG"):
        front.set_config(0, b"x")
    assert "read-only" in str(running.wait())


def test_device_state_reaches_the_successor(front: FrontEnd) -> None:
    front.set_config(4, b"\x07")
    second = RunningBackend(EchoDevice(queues=2))
    front.connect(second.peer)
    assert front.get_config(4, 1) == b"\x07"
    front.disconnect()
    assert second.close() is None


def test_device_learns_the_features(front: FrontEnd, running: RunningBackend) -> None:
    assert isinstance(running.device, EchoDevice)
    assert running.device.seen_features == bits.CHANNEL_FEATURES & ~bits.LOG_ALL | EchoDevice.features


@pytest.mark.parametrize(("request_number", "resets"), [(Request.RESET_DEVICE, 1), (Request.SET_STATUS, 0)])
def test_a_reset_stops_the_queues_and_keeps_their_place(
    front: FrontEnd, running: RunningBackend, request_number: Request, resets: int
) -> None:
    """QEMU 7.2 sets the status to 0 before it asks for the base, when a VM is paused or migrates."""
    assert ask(front, b"one") == b"eno"
    front.link.request(request_number, build_u64(0) if request_number is Request.SET_STATUS else b"")
    assert isinstance(running.device, EchoDevice)
    assert running.device.resets == resets
    assert front.stop() == [1, 0]
    request = EchoRequest(front, b"two")
    request.queue.submit(request.head)
    request.queue.force_kick()
    assert front.get_config(0, 1) == b"e"
    assert request.queue.reap() == []
    front.resume()
    assert request.queue.wait(5) == [(request.head, 3)]


def test_status_is_remembered(front: FrontEnd) -> None:
    front.link.request(Request.SET_STATUS, build_u64(0xF))
    assert front.link.ask(Request.GET_STATUS) == build_u64(0xF)


# Bad guests


def test_a_broken_queue_rests_and_the_other_goes_on(front: FrontEnd, running: RunningBackend) -> None:
    error = os.eventfd(0, os.EFD_NONBLOCK)
    front.link.request(Request.SET_VRING_ERR, build_u64(0), (error,))
    EchoRequest(front, b"!").submit()
    assert select.select([error], [], [], 5)[0] == [error]
    os.close(error)
    assert ask(front, b"fine", 1) == b"enif"
    assert running.reports == ["the echo is offended; the queue rests until the guest resets the device"]
    front.queues[0].force_kick()
    assert ask(front, b"still", 1) == b"llits"
    assert len(running.reports) == 1


def test_a_broken_queue_works_again_after_a_restart(front: FrontEnd, running: RunningBackend) -> None:
    struct.pack_into("=H", front.view, front.queues[0].available_address - GUEST_START + 2, 999)
    front.queues[0].force_kick()
    while not running.reports:
        front.get_config(0, 1)
    assert "999 chains available" in running.reports[0]
    front.stop()
    front.queues[0].set_features(front.features)
    front.resume()
    assert ask(front, b"again") == b"niaga"


def test_a_guest_that_never_stops_does_not_lock_out_the_front_end(running: RunningBackend) -> None:
    with FrontEnd(memory_bytes=MEMORY, queues=2, queue_size=8) as front:
        front.connect(running.peer)
        request = EchoRequest(front, b"x")
        done = 0
        for _ in range(300):
            request.submit()
            done += len(request.queue.wait(5))
        assert done == 300
        assert front.get_config(0, 4) == b"echo"


# Dirty log


def test_dirty_pages_are_noted_during_a_migration(front: FrontEnd) -> None:
    assert ask(front, b"before") == b"erofeb"
    front.start_log()
    assert front.take_dirty_pages() == set()
    request = EchoRequest(front, b"during")
    request.submit()
    wait_for(front.queues[0], 1)
    front.stop()
    pages = front.take_dirty_pages()
    assert pages == {request.answer_page, front.queues[0].used_address // 4096}


def test_a_successor_during_a_migration_waits_for_the_log(front: FrontEnd) -> None:
    front.start_log()
    second = RunningBackend(EchoDevice(queues=2))
    request = EchoRequest(front, b"logged")
    request.queue.submit(request.head)
    front.features |= bits.LOG_ALL
    front._wanted_features |= bits.LOG_ALL
    front.connect(second.peer)
    request.queue.force_kick()
    assert front.get_config(0, 1) == b"e"
    assert request.queue.reap() == []
    front.start_log()
    assert wait_for(request.queue, 1) == [request.head]
    front.stop()
    assert front.queues[0].used_address // 4096 in front.take_dirty_pages()
    front.disconnect()
    assert second.close() is None


def test_a_front_end_without_back_end_says_so() -> None:
    with (
        FrontEnd(memory_bytes=MEMORY) as front,
        pytest.raises(ChannelError, match="no back end is connected"),
    ):
        front.get_config(0, 1)


def test_a_signal_after_the_end_touches_no_descriptor() -> None:
    loop = EventLoop()
    loop.close()
    others = os.eventfd(0, os.EFD_NONBLOCK)  # may well have the number that was the loop's
    loop.wake()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(others)
    os.close(others)
