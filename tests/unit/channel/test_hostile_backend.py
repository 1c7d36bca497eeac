"""Hostile back ends: what a driver may do to a front end of ours, which must neither believe it nor wait."""

from __future__ import annotations

import array
import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.channel.hostile_peer import make_memory

from duovisor.channel import features as bits
from duovisor.channel import messages as m
from duovisor.channel.connection import Connection
from duovisor.channel.errors import ChannelError, PeerClosedError, ProtocolError
from duovisor.channel.frontend import FrontEnd
from duovisor.channel.frontend_link import ROW_MAX, FrontEndLink
from duovisor.channel.inflight import buffer_bytes
from duovisor.channel.messages import FLAG_REPLY, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.channel.connection import Message

pytestmark = pytest.mark.usefixtures("no_leak")

TIMEOUT_S = 0.3
BUSY_S = 10.0  # what waits for longer waits for ever, however busy the machine is
SIZE = 8
# What a correct back end answers, by request; every other request is acknowledged.
ANSWERS = {
    Request.GET_FEATURES: m.build_u64(bits.CHANNEL_FEATURES),
    Request.GET_PROTOCOL_FEATURES: m.build_u64(bits.CHANNEL_PROTOCOL_FEATURES),
    Request.GET_QUEUE_NUM: m.build_u64(1),
    Request.GET_MAX_MEM_SLOTS: m.build_u64(8),
    Request.GET_INFLIGHT_FD: m.build_inflight(m.InflightDescription(buffer_bytes(1, 1024), 0, 1, SIZE)),
    Request.GET_VRING_BASE: m.build_vring_state(0, 0),
    Request.GET_CONFIG: m.build_config(0, 0, bytes(8)),
    Request.SET_LOG_BASE: m.build_u64(0),
}
OK = m.build_u64(0)


class HostileBackend:
    """Answers as a correct back end does, but for what ``lies`` says: request → what is done instead."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.lies: dict[int, Callable[[Message], None]] = {}
        self._connection = Connection(theirs)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                message = self._connection.wait(30)
                try:
                    self.lies.get(message.request, self.answer)(message)
                finally:
                    message.close()
        except (ChannelError, OSError):  # the front end has left
            self._connection.close()

    def answer(self, message: Message) -> None:
        request = Request(message.request)
        if request not in ANSWERS and not message.needs_reply:
            return
        descriptors = (make_memory(buffer_bytes(1, 1024)),) if request == Request.GET_INFLIGHT_FD else ()
        self._connection.reply(message, ANSWERS.get(request, OK), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def send(self, data: bytes, descriptors: list[int]) -> None:
        """Bytes as they are; the descriptors belong to the call."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._connection.socket.sendmsg([data], rights if descriptors else [])
        for descriptor in descriptors:
            os.close(descriptor)

    def lie(self, request: Request, payload: bytes, *make: Callable[[], int]) -> None:
        """Answer a request with the right kind of message, but this payload and descriptors."""
        self.lies[request] = lambda message: self.send(
            m.build_header(message.request, FLAG_REPLY, len(payload)) + payload, [each() for each in make]
        )

    def close(self) -> None:
        self.socket.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def backend() -> Iterator[HostileBackend]:
    made = HostileBackend()
    yield made
    made.close()


@pytest.fixture
def front() -> Iterator[FrontEnd]:
    with FrontEnd(memory_bytes=1 << 20, queue_size=SIZE, timeout_s=TIMEOUT_S) as made:
        yield made


def test_without_a_lie_all_is_well(backend: HostileBackend, front: FrontEnd) -> None:
    use_everything(front, backend)


# Messages


def build_log(size: int, offset: int, queues: int = 1, entries: int = SIZE) -> bytes:
    return m.build_inflight(m.InflightDescription(size, offset, queues, entries))


GOOD_LOG = buffer_bytes(1, SIZE)


@pytest.mark.parametrize(
    ("payload", "make"),
    [
        (build_log(GOOD_LOG, 0), []),
        (build_log(GOOD_LOG, 0), [make_memory, make_memory]),
        (build_log(GOOD_LOG, 0), [lambda: os.eventfd(0)]),
        (build_log(GOOD_LOG, 0), [lambda: os.open("/", os.O_RDONLY)]),
        (build_log(GOOD_LOG, 0), [lambda: make_memory(8)]),
        (build_log(8, 0), [make_memory]),
        (build_log(GOOD_LOG, 2**63), [make_memory]),
        (build_log(2**64 - 1, 2**64 - 1), [make_memory]),
        (build_log(GOOD_LOG, 0, queues=0), [make_memory]),
        (build_log(GOOD_LOG, 0, queues=2), [make_memory]),
        (build_log(GOOD_LOG, 0, entries=SIZE // 2), [make_memory]),
        (b"short", [make_memory]),
    ],
)
def test_a_log_that_no_successor_could_use_is_not_kept(
    backend: HostileBackend, front: FrontEnd, payload: bytes, make: list[Callable[[], int]]
) -> None:
    backend.lie(Request.GET_INFLIGHT_FD, payload, *make)
    with pytest.raises(ProtocolError):
        front.connect(backend.socket)
    successor = HostileBackend()
    front.connect(successor.socket)  # asks anew
    front.disconnect()
    successor.close()


def use_everything(front: FrontEnd, backend: HostileBackend) -> None:
    front.connect(backend.socket)
    front.start_log()
    front.get_config(0, 8)
    front.stop()


LIES = (
    "silence", "byte by byte", "another request", "no reply flag", "too long", "empty", "descriptors", "end"
)  # fmt: skip


@pytest.mark.parametrize(
    ("request_number", "lie"),
    [
        pytest.param(number, lie, id=f"{number.name}-{lie}")
        for number in [*ANSWERS, Request.SET_VRING_NUM]
        for lie in LIES
        if (number, lie) != (Request.SET_LOG_BASE, "empty")  # the one answer that may have no payload
    ],
)
def test_no_answer_is_believed_or_waited_for_unduly(
    backend: HostileBackend, front: FrontEnd, request_number: Request, lie: str
) -> None:
    def do(message: Message) -> None:
        payload = ANSWERS.get(request_number, OK)
        whole = m.build_header(message.request, FLAG_REPLY, len(payload)) + payload
        if lie == "byte by byte":
            for byte in whole:
                backend.send(bytes([byte]), [])
                time.sleep(TIMEOUT_S / 5)
        elif lie == "another request":
            backend.send(m.build_header(99, FLAG_REPLY, 8) + OK, [])
        elif lie == "no reply flag":
            backend.send(m.build_header(message.request, 0, 8) + OK, [])
        elif lie == "too long":
            backend.send(m.build_header(message.request, FLAG_REPLY, 300) + bytes(300), [])
        elif lie == "empty":
            backend.send(m.build_header(message.request, FLAG_REPLY, 0), [])
        elif lie == "descriptors":
            backend.send(whole, [os.eventfd(0) for _ in range(9)])
        elif lie == "end":
            raise PeerClosedError("the back end has had enough")

    backend.lies[request_number] = do
    started = time.monotonic()
    with pytest.raises(ChannelError):
        use_everything(front, backend)
    front.disconnect()
    assert time.monotonic() - started < BUSY_S


@pytest.mark.parametrize("answer", [m.build_vring_state(1, 0), m.build_vring_state(0, 65536), b"abc"])
def test_a_place_that_no_queue_has_is_refused(
    backend: HostileBackend, front: FrontEnd, answer: bytes
) -> None:
    front.connect(backend.socket)
    backend.lie(Request.GET_VRING_BASE, answer)
    with pytest.raises(ProtocolError):
        front.stop()


@pytest.mark.parametrize("answer", [m.build_config(0, 0, bytes(7)), m.build_config(1, 0, bytes(8)), b""])
def test_configuration_that_was_not_asked_for_is_refused(
    backend: HostileBackend, front: FrontEnd, answer: bytes
) -> None:
    front.connect(backend.socket)
    backend.lie(Request.GET_CONFIG, answer)
    with pytest.raises(ProtocolError):
        front.get_config(0, 8)


@pytest.fixture
def link(backend: HostileBackend) -> Iterator[FrontEndLink]:
    made = FrontEndLink(backend.socket.dup(), TIMEOUT_S)
    made.negotiate(bits.CHANNEL_PROTOCOL_FEATURES, 1)
    yield made
    made.close()


def test_a_refusal_in_a_row_is_told_at_its_end(backend: HostileBackend, link: FrontEndLink) -> None:
    backend.lie(Request.SET_VRING_NUM, m.build_u64(1))
    link.begin_row()
    link.set_features(0)
    link.request(Request.SET_VRING_NUM, m.build_vring_state(0, 8))
    link.set_features(0)
    with pytest.raises(ProtocolError, match="refuses SET_VRING_NUM"):
        link.end_row()


def test_who_asks_in_a_row_gets_the_answer_to_that(backend: HostileBackend, link: FrontEndLink) -> None:
    link.begin_row()
    for _ in range(3 * ROW_MAX):  # more than a socket holds of a back end that waits for its answers' reader
        link.set_features(0)
    assert link.get_config(0, 8) == bytes(8)
    assert link.stop_queue(0) == 0
    link.end_row()
    link.set_features(0)


def test_a_row_that_nobody_answers_ends_in_time(backend: HostileBackend, link: FrontEndLink) -> None:
    backend.lies[Request.SET_FEATURES] = lambda message: None
    link.begin_row()
    for _ in range(ROW_MAX - 1):
        link.set_features(0)
    with pytest.raises(ProtocolError, match="did not answer"):
        link.set_features(0)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(Request)), st.binary(max_size=64), st.integers(0, 3))
def test_any_answer_is_taken_or_refused(number: Request, payload: bytes, descriptors: int) -> None:
    backend = HostileBackend()
    backend.lie(number, payload, *[make_memory] * descriptors)
    with FrontEnd(memory_bytes=1 << 20, queue_size=SIZE, timeout_s=TIMEOUT_S) as front:
        try:
            use_everything(front, backend)
        except ChannelError:
            pass  # whatever it is, it is ours
    backend.close()


# Memory


def test_guest_memory_and_log_cannot_be_cut_short(backend: HostileBackend, front: FrontEnd) -> None:
    refused: list[int | None] = []

    def cut(message: Message) -> None:
        try:
            os.ftruncate(message.descriptors[0], 0)
        except OSError as error:
            refused.append(error.errno)
        backend.answer(message)

    backend.lies[Request.ADD_MEM_REG] = backend.lies[Request.SET_LOG_BASE] = cut
    front.connect(backend.socket)
    front.start_log()
    assert refused == [errno.EPERM, errno.EPERM]


# Used rings


def submit(front: FrontEnd, room: int = 16) -> int:
    queue = front.queues[0]
    address, _ = front.allocate(room)
    head = queue.prepare([(address, 1)], [(address, room)])
    queue.submit(head)
    return head


def write_used(front: FrontEnd, index: int, *elements: tuple[int, int]) -> None:
    """What a back end does to the used ring."""
    queue = front.queues[0]
    for place, (head, written) in enumerate(elements):
        queue._used_words[1 + 2 * place] = head
        queue._used_words[2 + 2 * place] = written
    queue._used_halves[1] = index


@pytest.mark.parametrize(
    ("index", "elements"),
    [
        (2, [(0, 0), (0, 0)]),
        (65535, [(0, 0)]),
        (1, [(1, 0)]),
        (1, [(SIZE, 0)]),
        (1, [(2**32 - 1, 0)]),
        (1, [(0, 17)]),
        (1, [(0, 2**32 - 1)]),
    ],
)
def test_used_requests_that_cannot_be_are_refused(
    backend: HostileBackend, front: FrontEnd, index: int, elements: list[tuple[int, int]]
) -> None:
    front.connect(backend.socket)
    assert submit(front) == 0
    write_used(front, index, *elements)
    with pytest.raises(ProtocolError, match="used"):
        front.queues[0].wait(1)


def test_a_request_is_used_once(backend: HostileBackend, front: FrontEnd) -> None:
    front.connect(backend.socket)
    first, second = submit(front), submit(front)
    write_used(front, 2, (second, 0), (second, 0))
    with pytest.raises(ProtocolError):
        front.queues[0].reap()
    assert first != second


def test_notifications_of_nothing_do_not_prolong_a_wait(backend: HostileBackend, front: FrontEnd) -> None:
    front.connect(backend.socket)
    submit(front)
    ends = threading.Event()
    descriptor = front.queues[0].call_descriptor

    def notify() -> None:
        while not ends.wait(0.01):
            os.eventfd_write(descriptor, 1)

    thread = threading.Thread(target=notify)
    thread.start()
    started = time.monotonic()
    with pytest.raises(ProtocolError, match="no request was completed"):
        front.queues[0].wait(TIMEOUT_S)
    assert time.monotonic() - started < BUSY_S
    ends.set()
    thread.join()


def test_an_index_that_goes_back_and_forth_is_refused(backend: HostileBackend, front: FrontEnd) -> None:
    front.connect(backend.socket)
    submit(front)
    ends = threading.Event()

    def flip() -> None:
        while not ends.is_set():
            write_used(front, 1)
            write_used(front, 0)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        front.queues[0].wait(TIMEOUT_S)
    except ProtocolError:
        pass  # or it was seen as used, which is just as well
    finally:
        ends.set()
        thread.join()


def test_event_descriptors_that_a_back_end_fills_or_blocks_hold_up_nobody(
    backend: HostileBackend, front: FrontEnd
) -> None:
    front.connect(backend.socket)
    queue = front.queues[0]
    submit(front)
    os.eventfd_write(queue.kick_descriptor, 2**64 - 2)
    queue.force_kick()
    os.set_blocking(queue.call_descriptor, True)
    with pytest.raises(ProtocolError, match="no request was completed"):
        queue.wait(0.05)
