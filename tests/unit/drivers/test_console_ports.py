"""Ports with names beside the console: what is said about them, who waits, what a successor knows."""

from __future__ import annotations

import os
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.channel.echo_device import RunningBackend

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import console_control as control
from duovisor.controlling.drivers.console import create_console_device, create_dropping_console
from duovisor.controlling.drivers.console_device import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    FEATURE_MULTIPORT,
    TRANSMIT,
)
from duovisor.controlling.drivers.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.controlling.drivers.console_device import ConsoleDevice

TIMEOUT_S = 60.0
NAMES = ["org.duovisor.probe", "org.qemu.guest_agent.0"]
WORDS = [word for name in NAMES for word in ("--port", name)]
QUEUES = 2 * (1 + len(NAMES) + 1)


def transmit_of(port: int) -> int:
    return TRANSMIT if port == 0 else 2 * port + 3


class PortsGuest:
    """A guest's driver of a console with several ports, and the sockets on the host's side."""

    def __init__(self, folder: Path, *, several: bool = True) -> None:
        self.folder = folder
        self.listeners = {}
        for name in ("console", "port0", "port1"):
            self.listeners[name] = socket.socket(socket.AF_UNIX)
            self.listeners[name].bind(str(folder / name))
            self.listeners[name].listen()
        self.front = FrontEnd(
            queues=QUEUES if several else 2,
            queue_size=16,
            features=(1 << 64) - 1 & ~(1 << 26 | (0 if several else FEATURE_MULTIPORT)),
        )
        self._rooms: dict[tuple[int, int], memoryview] = {}
        self.device: ConsoleDevice
        self.start()
        for _ in range(8 if several else 0):
            self.post(CONTROL_RECEIVE, 128)

    def start(self) -> None:
        """A driver, the first one or the next."""
        self.device = create_console_device(
            WORDS, {name: each.dup().detach() for name, each in self.listeners.items()}
        )
        self.backend = RunningBackend(self.device)
        self.front.connect(self.backend.peer)

    def kill(self) -> None:
        """The driver dies."""
        self.front.disconnect()
        assert self.backend.close() is None

    def close(self) -> None:
        self.front.close()
        assert self.backend.close() is None
        for each in self.listeners.values():
            each.close()

    def connect(self, name: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT_S)
        client.connect(str(self.folder / name))
        return client

    # Queues

    def post(self, index: int, room: int) -> None:
        queue = self.front.queues[index]
        address, view = self.front.allocate(room)
        head = queue.prepare([], [(address, room)])
        self._rooms[index, head] = view
        queue.submit(head)
        queue.kick()

    def submit(self, index: int, data: bytes) -> int:
        """Send something without waiting; the request's head."""
        queue = self.front.queues[index]
        address, view = self.front.allocate(len(data))
        view[:] = data
        head = queue.prepare([(address, len(data))], [])
        queue.submit(head)
        queue.kick()
        return head

    def send(self, index: int, data: bytes) -> None:
        """Send something and wait until it is taken."""
        head = self.submit(index, data)
        assert self.front.queues[index].wait(TIMEOUT_S) == [(head, 0)]
        self.front.queues[index].release(head)

    def receive(self, index: int) -> list[bytes]:
        """What came into the next buffers."""
        queue, got = self.front.queues[index], []
        for head, written in queue.wait(TIMEOUT_S):
            got.append(bytes(self._rooms[index, head][:written]))
            queue.release(head)
        return got

    # Control

    def say(self, port: int, event: int, value: int = 1) -> None:
        self.send(CONTROL_TRANSMIT, control.MESSAGE.pack(port, event, value))

    def hear(self, count: int) -> list[tuple[int, int, int, bytes]]:
        """The next control messages: port, event, value, text."""
        heard: list[tuple[int, int, int, bytes]] = []
        while len(heard) < count:
            for data in self.receive(CONTROL_RECEIVE):
                heard.append((*control.MESSAGE.unpack_from(data), data[8:]))
                self.post(CONTROL_RECEIVE, 128)
        return heard

    def begin(self) -> None:
        """As Linux does: make itself known, take note of each port."""
        self.say(0xFFFFFFFF, control.DEVICE_READY)
        assert self.hear(3) == [(port, control.PORT_ADD, 1, b"") for port in range(3)]
        for port in range(3):
            self.say(port, control.PORT_READY)
        heard = self.hear(6)
        assert heard[:2] == [(0, control.CONSOLE_PORT, 1, b""), (0, control.PORT_OPEN, 1, b"")]
        for port, name in enumerate(NAMES, start=1):
            assert (port, control.PORT_NAME, 1, name.encode()) in heard
            assert (port, control.PORT_OPEN, 0, b"") in heard


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[PortsGuest]:
    made = PortsGuest(tmp_path)
    made.begin()
    yield made
    made.close()


def test_the_console_is_port_0(guest: PortsGuest) -> None:
    guest.send(TRANSMIT, b"nobody listens")
    with guest.connect("console") as viewer:
        guest.post(0, 16)
        guest.say(0, control.PORT_OPEN)
        viewer.send(b"root\n")
        assert guest.receive(0) == [b"root\n"]
        guest.send(TRANSMIT, b"# ")
        assert viewer.recv(10) == b"# "


def test_a_port_carries_both_ways(guest: PortsGuest) -> None:
    guest.post(4, 64)
    with guest.connect("port0") as client:
        assert guest.hear(1) == [(1, control.PORT_OPEN, 1, b"")]
        guest.say(1, control.PORT_OPEN)
        client.send(b"report\n")
        assert guest.receive(4) == [b"report\n"]
        guest.send(transmit_of(1), b"booted\n")
        assert client.recv(100) == b"booted\n"
    assert guest.hear(1) == [(1, control.PORT_OPEN, 0, b"")]


def test_ports_do_not_mix(guest: PortsGuest) -> None:
    with guest.connect("port0") as first, guest.connect("port1") as second:
        assert sorted(guest.hear(2)) == [(port, control.PORT_OPEN, 1, b"") for port in (1, 2)]
        guest.send(transmit_of(2), b"two")
        guest.send(transmit_of(1), b"one")
        assert (first.recv(10), second.recv(10)) == (b"one", b"two")


def test_what_comes_before_the_guest_opens_waits(guest: PortsGuest) -> None:
    guest.post(4, 64)
    with guest.connect("port0") as client:
        client.send(b"early")
        guest.hear(1)
        assert not guest.front.queues[4].has_used()
        guest.say(1, control.PORT_OPEN)
        assert guest.receive(4) == [b"early"]
        guest.say(1, control.PORT_OPEN, 0)
        guest.post(4, 64)
        client.send(b"late")
        guest.send(TRANSMIT, b"a turn of the driver")
        assert not guest.front.queues[4].has_used()
        guest.say(1, control.PORT_OPEN)
        assert guest.receive(4) == [b"late"]


def test_without_a_client_what_is_sent_is_dropped(guest: PortsGuest) -> None:
    guest.send(transmit_of(1), b"nobody is there")
    with guest.connect("port0") as client:
        guest.hear(1)
        guest.send(transmit_of(1), b"now")
        assert client.recv(100) == b"now"


def test_the_guest_waits_for_a_client_that_is_slow(guest: PortsGuest) -> None:
    sent = [random.Random(n).randbytes(60_000) for n in range(12)]
    with guest.connect("port0") as client:
        guest.hear(1)
        for data in sent:
            guest.submit(transmit_of(1), data)
        time.sleep(0.1)
        assert guest.front.queues[transmit_of(1)].outstanding == 12
        assert len(guest.front.queues[transmit_of(1)].reap()) < 12
        got = b""
        while len(got) < 12 * 60_000:
            got += client.recv(1 << 16)
        assert got == b"".join(sent)


def test_a_pause_in_the_middle_of_a_message_loses_and_doubles_nothing(guest: PortsGuest) -> None:
    sent = [random.Random(n).randbytes(60_000) for n in range(12)]
    with guest.connect("port0") as client:
        guest.hear(1)
        for data in sent:
            guest.submit(transmit_of(1), data)
        time.sleep(0.1)
        got = b""
        for _ in range(4):
            guest.front.stop()
            got += client.recv(100_000)
            guest.front.resume()
            guest.hear(1)
        while len(got) < 12 * 60_000:
            got += client.recv(1 << 16)
        assert got == b"".join(sent)


def test_a_client_that_leaves_frees_the_guest(guest: PortsGuest) -> None:
    client = guest.connect("port0")
    guest.hear(1)
    for _ in range(12):
        guest.submit(transmit_of(1), bytes(60_000))
    client.close()
    done = 0
    while done < 12:
        done += len(guest.front.queues[transmit_of(1)].wait(TIMEOUT_S))


def test_a_successor_knows_the_ports(guest: PortsGuest) -> None:
    guest.post(4, 64)
    first = guest.connect("port0")
    guest.hear(1)
    guest.say(1, control.PORT_OPEN)
    guest.kill()
    assert first.recv(1) == b"", "the client learns of it"
    guest.start()
    heard = guest.hear(6)
    assert (1, control.PORT_NAME, 1, NAMES[0].encode()) in heard
    assert (1, control.PORT_OPEN, 0, b"") in heard
    with guest.connect("port0") as client:
        client.send(b"hello again")
        assert guest.receive(4) == [b"hello again"], "the port is still open in the guest"
    first.close()


def test_a_successor_introduces_what_the_guest_does_not_know(tmp_path: Path) -> None:
    guest = PortsGuest(tmp_path)
    guest.say(0xFFFFFFFF, control.DEVICE_READY)
    guest.hear(3)
    guest.say(1, control.PORT_READY)
    guest.hear(2)
    guest.kill()
    guest.start()
    heard = guest.hear(4)
    assert {each[:2] for each in heard} == {
        (0, control.PORT_ADD), (1, control.PORT_NAME), (1, control.PORT_OPEN), (2, control.PORT_ADD)
    }  # fmt: skip
    guest.close()


def test_a_reset_forgets(guest: PortsGuest) -> None:
    guest.say(1, control.PORT_OPEN)
    guest.front.stop()
    guest.front.link.reset_device()
    assert not any(port.ready for port in guest.device.ports)
    assert not any(port.open for port in guest.device.ports[1:])


def test_a_guest_that_knows_only_one_port_has_a_console(tmp_path: Path) -> None:
    plain = PortsGuest(tmp_path, several=False)
    plain.post(0, 16)
    with plain.connect("console") as viewer:
        viewer.send(b"hi")
        assert plain.receive(0) == [b"hi"]
    plain.close()


@settings(max_examples=60, deadline=None)
@given(
    said=st.lists(
        st.tuples(st.sampled_from((0, 1, 2, 3, 31, 32, 0xFFFFFFFF)), st.integers(0, 9), st.integers(0, 2)),
        max_size=20,
    )
)
def test_whatever_the_guest_says_little_is_kept(said: list[tuple[int, int, int]]) -> None:
    device = create_dropping_console(WORDS, {})
    for message in said:
        device._obey(*message)
    assert len(device._messages._waiting) <= 3 * 4
    again = create_dropping_console(WORDS, {})
    again.load_state(device.save_state())
    assert again.save_state() == device.save_state()
    device.close()
    again.close()


def test_a_control_message_that_is_none_ends_the_queue(guest: PortsGuest) -> None:
    guest.submit(CONTROL_TRANSMIT, b"short")
    deadline = time.monotonic() + TIMEOUT_S
    while not guest.backend.reports and time.monotonic() < deadline:
        time.sleep(0.001)
    assert "a control message of 5 bytes" in guest.backend.reports[0]


def test_what_is_refused() -> None:
    def refuse(words: list[str], descriptors: dict[str, int]) -> str:
        with pytest.raises(DriverError) as refused:
            create_console_device(words, descriptors)
        return refused.value.message

    ours, theirs = socket.socketpair()
    number = ours.detach()
    assert refuse(["--port", "a"], {"console": number}) == "the descriptor port0 is missing"
    os.close(number)
    theirs.close()
    assert refuse(["--port"], {}) == "option --port is '', not a name of up to 63 bytes"
    assert refuse(["--port", "a"] * 31, {}) == "a console has up to 30 ports with names, not 31"


def test_a_stand_in_has_the_same_ports(tmp_path: Path) -> None:
    real = PortsGuest(tmp_path)
    stand_in = create_dropping_console(WORDS, {"port0": os.eventfd(0)})
    for name in ("features", "queues", "device_id"):
        assert getattr(stand_in, name) == getattr(real.device, name)
    assert stand_in.read_config() == real.device.read_config()
    stand_in.close()
    real.close()
