"""The console: what is printed and typed, who sees it, and what nobody has to wait for."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import RunningBackend

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers import console_port
from duovisor.controlling.drivers.console import create_console_device, create_dropping_console
from duovisor.controlling.drivers.console_device import RECEIVE, TRANSMIT, ConsoleDevice
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.registry import DRIVERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.channel.device import VirtioDevice

TIMEOUT_S = 60.0


class Terminal:
    """A guest with a console, as the front end sees it, and the host's side of it."""

    def __init__(self, device: VirtioDevice, folder: Path) -> None:
        self.folder = folder
        self.device = device
        self.backend = RunningBackend(device)
        self.front = FrontEnd(queues=2, queue_size=16)
        self.front.connect(self.backend.peer)
        self._rooms: dict[int, memoryview] = {}

    def print(self, *pieces: bytes) -> None:
        """Print in one request, and wait until it is taken."""
        queue, places = self.front.queues[TRANSMIT], []
        for piece in pieces:
            address, view = self.front.allocate(len(piece))
            view[:] = piece
            places.append((address, len(piece)))
        head = queue.prepare(places, [])
        queue.submit(head)
        queue.kick()
        assert queue.wait(TIMEOUT_S) == [(head, 0)]
        queue.release(head)

    def post(self, room: int) -> None:
        """Give the console an empty buffer."""
        queue = self.front.queues[RECEIVE]
        address, view = self.front.allocate(room)
        head = queue.prepare([], [(address, room)])
        self._rooms[head] = view
        queue.submit(head)
        queue.kick()

    def read_typed(self) -> bytes:
        """What was typed into the next buffers."""
        reaped = self.front.queues[RECEIVE].wait(TIMEOUT_S)
        return b"".join(bytes(self._rooms[head][:written]) for head, written in reaped)

    def view(self) -> socket.socket:
        """A viewer, who is attached when what it is sent arrives."""
        viewer = socket.socket(socket.AF_UNIX)
        viewer.settimeout(TIMEOUT_S)
        viewer.connect(str(self.folder / "console.sock"))
        return viewer

    def see(self, viewer: socket.socket, text: bytes) -> None:
        """Print until the viewer is attached and has seen it, and take that away."""
        deadline, seen = time.monotonic() + TIMEOUT_S, b""
        viewer.settimeout(0.05)
        while not seen.endswith(text):
            assert time.monotonic() < deadline
            self.print(text)
            try:
                seen += viewer.recv(1 << 16)
            except TimeoutError:
                continue
        viewer.settimeout(TIMEOUT_S)

    def read_log(self) -> bytes:
        return (self.folder / "console.log").read_bytes()

    def close(self) -> None:
        self.front.close()
        assert self.backend.close() is None


def open_log(folder: Path) -> int:
    return os.open(folder / "console.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def make_device(folder: Path) -> ConsoleDevice:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "console.sock"))
    listener.listen()
    return create_console_device([], {"console": listener.detach(), "log": open_log(folder)})


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(make_device(tmp_path), tmp_path)
    yield made
    made.close()


def test_what_is_printed_is_logged_and_shown(terminal: Terminal) -> None:
    terminal.print(b"before anybody came\n")
    with terminal.view() as viewer:
        terminal.see(viewer, b"now\n")
        terminal.print(b"in ", b"pieces\n")
        seen = b""
        while len(seen) < 10:
            seen += viewer.recv(100)
        assert seen == b"in pieces\n"
    log = terminal.read_log()
    assert log.startswith(b"before anybody came\nnow\n")
    assert log.endswith(b"in pieces\n")


def test_what_is_typed_arrives(terminal: Terminal) -> None:
    for _ in range(3):
        terminal.post(8)
    with terminal.view() as viewer:
        viewer.send(b"ls\n")
        assert terminal.read_typed() == b"ls\n"
        viewer.send(b"a longer command\n")
        got = b""
        while not got.endswith(b"\n"):
            got += terminal.read_typed()
            terminal.post(8)
        assert got == b"a longer command\n"


def test_what_is_typed_waits_for_buffers(terminal: Terminal) -> None:
    with terminal.view() as viewer:
        viewer.send(b"early")
        terminal.see(viewer, b"settled\n")
        terminal.post(16)
        assert terminal.read_typed() == b"early"


def test_one_viewer_after_the_other(terminal: Terminal) -> None:
    first, second = terminal.view(), terminal.view()
    terminal.see(first, b"for the first\n")
    first.close()
    terminal.see(second, b"for the second\n")
    terminal.post(8)
    second.send(b"hi")
    assert terminal.read_typed() == b"hi"
    second.close()
    with terminal.view() as third:
        terminal.see(third, b"for the third\n")


def test_a_viewer_that_leaves_what_it_typed(terminal: Terminal) -> None:
    terminal.post(8)
    viewer = terminal.view()
    viewer.send(b"bye")
    viewer.close()
    assert terminal.read_typed() == b"bye"


def test_nobody_waits_for_a_viewer_that_does_not_read(terminal: Terminal) -> None:
    with terminal.view() as viewer:
        terminal.see(viewer, b"go\n")
        for _ in range(40):
            terminal.print(b"x" * 65536)
        assert isinstance(terminal.device, ConsoleDevice)
        assert terminal.device.ports[0].missed_bytes > 0
    assert terminal.read_log().count(b"x") == 40 * 65536
    assert terminal.device.ports[0].printed_bytes == len(terminal.read_log())


def test_a_log_that_nobody_cuts_ends(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_port, "LOG_BYTES_MAX", 10)
    for _ in range(4):
        terminal.print(b"12345678")
    assert terminal.read_log() == b"12345678" * 2
    os.truncate(terminal.folder / "console.log", 0)
    terminal.print(b"again")
    assert terminal.read_log() == b"again"


def test_a_full_disk_is_no_matter_of_the_guests(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
    ours, theirs = socket.socketpair()
    device = ConsoleDevice(ours, full)
    terminal = Terminal(device, tmp_path)
    terminal.print(b"nowhere to put it")
    assert theirs.recv(100) == b"nowhere to put it"
    terminal.close()
    theirs.close()


def test_a_connected_socket_is_the_viewer(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    terminal = Terminal(create_console_device([], {"console": ours.detach()}), tmp_path)
    terminal.print(b"hello")
    assert theirs.recv(100) == b"hello"
    terminal.post(4)
    theirs.send(b"ok")
    assert terminal.read_typed() == b"ok"
    theirs.close()
    terminal.print(b"nobody")
    terminal.close()


def test_a_successor_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    terminal.post(8)
    terminal.print(b"one\n")
    listener = os.dup(terminal.device.ports[0]._listener.fileno())  # type: ignore[attr-defined]
    terminal.front.disconnect()
    assert terminal.backend.close() is None
    terminal.device = create_console_device([], {"console": listener, "log": open_log(tmp_path)})
    terminal.backend = RunningBackend(terminal.device)
    terminal.front.connect(terminal.backend.peer)
    terminal.print(b"two\n")
    assert terminal.read_log() == b"one\ntwo\n"
    with terminal.view() as viewer:
        viewer.send(b"typed")
        assert terminal.read_typed() == b"typed"


def test_a_paused_console_gives_its_buffers_back(terminal: Terminal) -> None:
    terminal.post(8)
    terminal.post(8)
    assert terminal.front.stop() == [0, 0]
    terminal.front.resume()
    with terminal.view() as viewer:
        viewer.send(b"after")
        assert terminal.read_typed() == b"after"


def test_a_buffer_that_is_none_ends_the_queue(terminal: Terminal) -> None:
    queue = terminal.front.queues[RECEIVE]
    address, _ = terminal.front.allocate(8)
    queue.submit(queue.prepare([(address, 4)], [(address + 4, 4)]))
    queue.kick()
    deadline = time.monotonic() + TIMEOUT_S
    while not terminal.backend.reports and time.monotonic() < deadline:
        time.sleep(0.001)
    assert "a buffer for what is typed" in terminal.backend.reports[0]
    terminal.print(b"the other queue goes on")


def test_the_stand_in_takes_everything(tmp_path: Path) -> None:
    terminal = Terminal(create_dropping_console([], {}), tmp_path)
    terminal.post(8)
    terminal.print(b"into the void")
    terminal.close()


def test_what_is_refused(tmp_path: Path) -> None:
    def refuse(words: list[str], descriptors: dict[str, int]) -> str:
        with pytest.raises(DriverError) as refused:
            create_console_device(words, descriptors)
        for descriptor in descriptors.values():
            os.close(descriptor)
        return refused.value.message

    assert refuse(["--loud"], {}) == "the console driver has no option --loud"
    assert refuse([], {}) == "the descriptor console is missing"
    assert "no socket" in refuse([], {"console": open_log(tmp_path)})
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    assert refuse([], {"console": datagram}) == "the descriptor console is no Unix stream socket"
    assert refuse([], {"log": os.eventfd(0)}) == "the descriptor log is no file"
    plain = os.open(tmp_path / "plain", os.O_WRONLY | os.O_CREAT)
    assert "not opened for appending" in refuse([], {"log": plain})


def test_a_partition_knows_both() -> None:
    assert DRIVERS["console"] is create_console_device
    assert DRIVERS["failing-console"] is create_dropping_console
    ours, theirs = os.pipe()
    create_dropping_console([], {"log": theirs}).close()
    assert os.read(ours, 1) == b"", "the other end is closed"
    os.close(ours)
