"""The test's side of a nursery: drivers, and a crew of an active one and a spare."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duovisor
from duovisor.channel.page import create_page
from duovisor.channel.snapshot import Kind, SnapshotReceiver, send_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.channel.snapshot import Snapshot

SOURCE = str(Path(duovisor.__file__).parent.parent)
TIMEOUT_S = 60.0


class Nursery:
    """The forking process."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", str(Path(__file__).with_name("nursery.py")), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),), env={"PYTHONPATH": SOURCE}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()

    def make(self, role: str, given: dict[str, int], **settings: object) -> Driver:
        """A new driver; the descriptors stay the caller's."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = {**given, "control": theirs.fileno()}
        order = {"role": role, "descriptors": list(given), **settings}
        send(self.orders, order, list(given.values()))
        theirs.close()
        return Driver(int(self.orders.recv(64)), control)

    def close(self) -> str:
        """End it; what its children said."""
        self.orders.close()
        return self.process.communicate(timeout=TIMEOUT_S)[1]


class Driver:
    """A driver in a process of its own."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.control = control
        control.settimeout(TIMEOUT_S)

    def ask(self, do: str, descriptors: Sequence[int] = (), **settings: object) -> Any:
        send(self.control, {"do": do, **settings}, descriptors)
        return self.next_event()["reply"]

    def next_event(self) -> dict[str, Any]:
        data = self.control.recv(65536)
        assert data, "the driver is gone"
        event: dict[str, Any] = json.loads(data)
        return event

    def has_event(self) -> bool:
        return bool(select.select([self.control], [], [], 0)[0])

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    @property
    def gone(self) -> bool:
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def kill(self) -> None:
        """End it, if it lives, and wait until it is gone."""
        try:
            self.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        assert select.select([self.pidfd], [], [], TIMEOUT_S)[0]

    def close(self) -> None:
        self.kill()
        os.close(self.pidfd)
        self.control.close()


class Crew:
    """The drivers of one disk in a memory file, and what an owner keeps for them."""

    def __init__(self, nursery: Nursery, image_bytes: int, queues: int) -> None:
        self.nursery = nursery
        self.queues = queues
        self.image = os.memfd_create("image")
        os.ftruncate(self.image, image_bytes)
        self.page = create_page()
        self.channel: socket.socket | None = None
        self.active: Driver | None = None
        self.spare: Driver | None = None
        self.all: list[Driver] = []
        self._heirs: list[socket.socket] = []

    def start_active(self, **settings: object) -> socket.socket:
        """A new active driver on a new connection, whose other end is returned; others must be gone."""
        ours, theirs = socket.socketpair()
        given = {"image": self.image, "page": self.page, "channel": theirs.fileno()}
        self.active = self._make("active", given, settings)
        theirs.close()
        if self.channel is not None:
            self.channel.close()
        self.channel = ours.dup()
        self.channel.setblocking(False)
        return ours

    def add_spare(self, *, with_pidfd: bool = True, **settings: object) -> None:
        """A spare for the active driver, which has told it everything when this returns."""
        assert self.active is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = {"image": self.image, "page": self.page, "succession": theirs.fileno()}
        if with_pidfd:
            given["active"] = self.active.pidfd
        self.spare = self._make("spare", given, settings)
        theirs.close()
        self.active.ask("add_successor", [ours.fileno()], name="spare")
        ours.close()
        assert self.spare.next_event()["event"] == "standing by"

    def add_heir(self) -> SnapshotReceiver:
        """The owner as a successor of last resort; it keeps what it receives."""
        assert self.active is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.active.ask("add_successor", [theirs.fileno()], name="owner")
        theirs.close()
        self._heirs.append(ours)
        return SnapshotReceiver(ours)

    def resume_from(self, snapshot: Snapshot) -> dict[str, Any]:
        """A new active driver that begins with a snapshot; what it says about that."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = {"image": self.image, "page": self.page, "succession": theirs.fileno()}
        driver = self._make("spare", given, {})
        theirs.close()
        send_snapshot(ours, snapshot, Kind.FINAL)
        ours.close()
        assert driver.next_event()["event"] == "standing by"
        self.active = driver
        return driver.next_event()

    def promote(self) -> dict[str, Any]:
        """Wait for what the spare says when the active one is gone; if it took over, it is the active one."""
        assert self.spare is not None
        event = self.spare.next_event()
        spare, self.spare = self.spare, None
        self.active = spare if event["event"] == "took-over" else None
        return event

    @property
    def disconnected(self) -> bool:
        """Whether the front end's connection has come to its end."""
        assert self.channel is not None
        try:
            return self.channel.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def content(self) -> bytes:
        return os.pread(self.image, os.fstat(self.image).st_size, 0)

    def close(self) -> None:
        for driver in self.all:
            driver.close()
        for heir in self._heirs:
            heir.close()
        if self.channel is not None:
            self.channel.close()
        os.close(self.image)
        os.close(self.page)

    def _make(self, role: str, given: dict[str, int], settings: dict[str, object]) -> Driver:
        driver = self.nursery.make(role, given, queues=self.queues, **settings)
        self.all.append(driver)
        return driver


def send(sock: socket.socket, order: dict[str, object], descriptors: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([json.dumps(order).encode()], rights)


def wait_until(condition: Any, what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for a condition that nobody announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.0005)
