"""The console in a real partition: printing, typing, a spare that takes over after a kill."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest_asyncio

from duovisor.channel.frontend import FrontEnd
from duovisor.channel.page import create_page
from duovisor.controlling.drivers.console_device import RECEIVE, TRANSMIT
from duovisor.controlling.partitions.control import bind_listener
from duovisor.controlling.partitions.factory import PartitionFactory
from duovisor.controlling.partitions.limits import build_limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.partitions.partition import Partition

VM_UID = 0x70001234
TIMEOUT_S = 60


class ServedConsole:
    """A console, its viewers' socket and log, and partitions that serve it to ``front``."""

    def __init__(self, factory: PartitionFactory, folder: Path) -> None:
        self.factory = factory
        self.folder = folder
        self.front = FrontEnd(queues=2, queue_size=16)
        self.partitions: list[Partition] = []
        self._page = create_page()
        self._viewers = socket.socket(socket.AF_UNIX)
        self._viewers.bind(str(folder / "console.sock"))
        self._viewers.listen()
        self._log = os.open(folder / "console.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        self.front.close()
        self._viewers.close()
        for descriptor in (self._page, self._log):
            os.close(descriptor)
        for partition in self.partitions:
            partition.control.close()

    async def _begin(self, order: str, driver: str, descriptors: dict[str, int]) -> Partition:
        name = f"console{len(self.partitions)}"
        partition = await self.factory.create(
            name=f"vm/{name}", uid=VM_UID, gid=VM_UID, log=self.folder / f"{name}.log",
            limits=build_limits(64),
        )  # fmt: skip
        self.partitions.append(partition)
        with bind_listener(self.folder / f"{name}.control") as listener:
            own = {"console": self._viewers.fileno(), "log": self._log}
            given = {"listener": listener.fileno(), "page": self._page, **own, **descriptors}
            await partition.control.request(order, driver=driver, descriptors=given)
        return partition

    async def serve(self, driver: str = "console") -> Partition:
        """A partition that serves on a new connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            partition = await self._begin("serve", driver, {"channel": theirs.fileno()})
        self.front.connect(ours)
        assert await partition.control.next_event() == {"event": "serving", "connection": "new"}
        return partition

    async def stand_by(self, active: Partition) -> Partition:
        """A spare that has its first snapshot."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = os.pidfd_open(active.process.pid)
        with theirs, ours:
            spare = await self._begin("stand_by", "console", {"succession": theirs.fileno(), "active": pidfd})
            await active.control.request(
                "add_successor", name="spare", descriptors={"succession": ours.fileno()}
            )
        os.close(pidfd)
        while not (await spare.control.request("status"))["ready"]:
            pass  # each round is a request and its reply
        return spare

    def print(self, text: bytes) -> None:
        """Print as a guest does, and wait until it is taken."""
        queue = self.front.queues[TRANSMIT]
        address, view = self.front.allocate(len(text))
        view[:] = text
        head = queue.prepare([(address, len(text))], [])
        queue.submit(head)
        queue.kick()
        assert queue.wait(TIMEOUT_S) == [(head, 0)]
        queue.release(head)

    def post(self) -> memoryview:
        """Give the console an empty buffer."""
        queue = self.front.queues[RECEIVE]
        address, view = self.front.allocate(64)
        queue.submit(queue.prepare([], [(address, 64)]))
        queue.kick()
        return view

    def type(self, text: bytes, buffer: memoryview) -> socket.socket:
        """Attach a viewer who types until it arrives."""
        viewer = socket.socket(socket.AF_UNIX)
        viewer.settimeout(TIMEOUT_S)
        viewer.connect(str(self.folder / "console.sock"))
        viewer.send(text)
        [(_, written)] = self.front.queues[RECEIVE].wait(TIMEOUT_S)
        assert bytes(buffer[:written]) == text
        return viewer

    def read_log(self) -> bytes:
        return (self.folder / "console.log").read_bytes()


@pytest_asyncio.fixture
async def console(folder: Path) -> AsyncIterator[ServedConsole]:
    factory = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=True)
    made = ServedConsole(factory, folder)
    yield made
    made.close()
    await factory.close()
    assert (folder / "factory.log").read_text() == ""


async def test_a_console_is_served(console: ServedConsole) -> None:
    partition = await console.serve()
    console.print(b"booting\n")
    with console.type(b"hello", console.post()) as viewer:
        console.print(b"login: ")
        assert viewer.recv(100) == b"login: "
    assert console.read_log() == b"booting\nlogin: "
    statistics = (await partition.control.request("status"))["statistics"]["device"]
    assert statistics["console"]["printed"] == 15
    assert statistics["console"]["typed"] == 5
    console.front.disconnect()
    assert (await partition.process.wait(), partition.process.last_words()) == (0, "")


async def test_a_spare_takes_over_after_a_kill(console: ServedConsole) -> None:
    active = await console.serve()
    buffer = console.post()
    for turn in range(3):
        spare = await console.stand_by(active)
        console.print(b"%d" % turn)
        assert await active.process.kill() == -signal.SIGKILL
        assert await spare.control.next_event() == {"event": "serving", "connection": "inherited"}
        active = spare
    console.print(b".")
    assert console.read_log() == b"012."
    console.type(b"still there", buffer).close()


async def test_a_hand_over_loses_nothing(console: ServedConsole) -> None:
    active = await console.serve()
    buffer = console.post()
    await console.stand_by(active)
    console.print(b"old ")
    await active.control.request("hand_over", to="spare")
    assert (await active.process.wait(), active.process.last_words()) == (0, "")
    console.print(b"new")
    assert console.read_log() == b"old new"
    console.type(b"typed", buffer).close()


async def test_a_stand_in_drops(console: ServedConsole) -> None:
    await console.serve("failing-console")
    console.post()
    console.print(b"nobody sees this")
    assert console.read_log() == b""
