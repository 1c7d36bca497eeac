"""The keeper of a disk's format process: starts it, and the next one when it has died.

The drivers of the disk share one connection to it, and a replay memory that outlives them all. A new process
means a new connection, which the drivers are given; they make good what the dead one had not brought to its
image (drivers/formatted.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol

from duovisor.controlling.description import describe_process
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.formats.process import ROLE, create_disk_replay, start_format_process
from duovisor.controlling.supervision.backoff import FRUITFUL_REQUESTS, Backoff
from duovisor.controlling.supervision.records import DriverEventKind
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.formats.process import FormatEnvironment, FormatProcess
    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.process import Process
    from duovisor.spec.vm import DiskSpec

PROGRAM_POLL_S = 0.005
KILLED = (-9, 137)  # 137 is what bubblewrap makes of it
RELEASE_S = 10.0
FRUITFUL_S = 1.0  # a format process that opened its image and served for so long may die of chance


class Drivers(Protocol):
    """The drivers that a format process serves; ``controlling.supervision.device`` has the real ones."""

    async def attach(self, name: str, descriptor: int) -> None:
        """Give a descriptor to every driver that there is."""
        ...

    async def give_up(self, reason: str) -> None:
        """Do what the device's policy says."""
        ...

    def tell(self, kind: DriverEventKind, message: str) -> None:
        """Tell the owner of something."""
        ...


class FormatKeeper:
    """Keeps one disk's format process; ``descriptors`` are what the disk's drivers are started with.

    ``note`` is called when ``described``, the process as others may find it, has changed.
    """

    def __init__(
        self,
        environment: FormatEnvironment,
        device: str,
        disk: DiskSpec,
        chain: Sequence[ImageFile],
        note: Callable[[], None],
    ) -> None:
        self.size_bytes = 0
        self.descriptors: dict[str, int] = {}
        self.running: FormatProcess | None = None
        self.described: ProcessDescription | None = None
        self._note = note
        self._environment = environment
        self._device = device
        self._disk = disk
        self._chain = chain
        self._drivers: Drivers | None = None
        self._backoff = Backoff()
        self._has_image = True
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self.running is not None and not self.running.process.has_ended

    def prepare(self, size_bytes: int) -> None:
        """Be ready for a disk of this size, whose image somebody else has until ``take_image``."""
        self.descriptors["replay"] = create_disk_replay(self._disk)
        self.size_bytes = size_bytes
        self._has_image = False

    async def take_image(self) -> None:
        """Open the image, which nobody else uses any more. Raises ``DuovisorError``."""
        assert self._drivers is not None
        self._has_image = True
        await self._begin_again(self._drivers)
        self.watch(self._drivers)

    async def release_image(self) -> None:
        """Let go of the image, with all that was written in it; the drivers wait.

        Raises ``PartitionError`` when the process did not end in order; ``take_image`` mends that.
        """
        self._has_image = False
        await self.stop_watching()
        running, self.running = self.running, None
        if running is None:
            return
        running.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(RELEASE_S):
                in_order = await running.process.wait() in (0, None)  # of an adopted one nobody is told
        except TimeoutError:
            await running.process.kill()
            in_order = False
        running.remove()
        if not in_order:
            raise PartitionError(
                f"the {ROLE} of {self._device} did not end in order: {running.process.failure().message}"
            )

    async def start(self) -> None:
        """Start the first process and learn the disk's size. Raises ``DuovisorError``; call ``end`` then."""
        self.descriptors["replay"] = create_disk_replay(self._disk)
        self._start_process()
        assert self.running is not None
        self.size_bytes = await self.running.read_size()
        self._connect()
        self._write_down(self.running.process)

    def adopt(
        self, running: FormatProcess | None, described: ProcessDescription, descriptors: dict[str, int]
    ) -> None:
        """Take over what a previous owner left: the process, and the descriptors that its drivers hold.

        Raises ``PartitionError`` when the process cannot be reached.
        """
        self.running = running
        self.described = described
        self.size_bytes = described.capacity_bytes
        self.descriptors.update(descriptors)
        if "replay" not in self.descriptors:  # with its last driver what it had not flushed is gone
            self.descriptors["replay"] = create_disk_replay(self._disk)
        if "format" not in self.descriptors and running is not None:
            self._connect()

    def watch(self, drivers: Drivers) -> None:
        """Look after the process from now on."""
        self._drivers = drivers
        if not self._has_image:
            return
        self._task = asyncio.create_task(
            self._run(drivers), name=f"keep the format process of {self._device}"
        )

    async def revive(self) -> None:
        """Try again after it was given up. Raises ``DuovisorError``."""
        if self._drivers is None or (self._task is not None and not self._task.done()):
            return
        self._backoff.forgive()
        await self._begin_again(self._drivers)
        self.watch(self._drivers)

    async def kill(self) -> None:
        """End a process that hangs; the next one follows."""
        if self.running is not None:
            await self.running.process.kill()

    async def end(self) -> None:
        """End the process; nobody needs the disk any more."""
        await self.stop_watching()
        if self.running is not None:
            # it brings what it holds to its image when it ends in order
            await self.running.process.stop(grace_s=10.0)
            self.running.remove()
        self._close()

    async def detach(self) -> None:
        """Let go of the process, which goes on."""
        await self.stop_watching()
        if self.running is not None:
            self.running.process.release()
        self._close()

    async def _run(self, drivers: Drivers) -> None:
        while True:
            began = time.monotonic()
            if self.running is not None:
                with ExitStack() as stack:
                    program = await self._open_program(self.running.process, stack)
                    await self.running.process.wait()
                    if program is not None:  # it may have lost the sandbox's own process and have the image
                        await _end_program(program)
                failure = self.running.process.failure().message
                killed = self.running.process.returncode in KILLED
            else:
                failure, killed = "ended while nobody looked", False
            died = time.monotonic()
            drivers.tell(DriverEventKind.FORMAT_DIED, failure)
            requests = FRUITFUL_REQUESTS if died - began > FRUITFUL_S else 0
            lived_s = died - began
            while (
                delay_s := self._backoff.died(died, lived_s=lived_s, requests=requests, killed=killed)
            ) is not None:
                await asyncio.sleep(delay_s)
                try:
                    await self._begin_again(drivers)
                    break
                except DuovisorError as error:
                    failure, killed, requests, lived_s = error.message, False, 0, 0.0
            else:
                await drivers.give_up(f"its format process cannot be kept running: {failure}")
                return
            took_ms = (time.monotonic() - died) * 1000
            drivers.tell(
                DriverEventKind.FORMAT_RECOVERED, f"a new one after {took_ms:.1f} ms, pid {self._pid}"
            )

    @property
    def _pid(self) -> int:
        return self.running.process.program_pid() if self.running else -1

    async def _open_program(self, started: Process, stack: ExitStack) -> int | None:
        """A pidfd of the program inside the sandbox, once it is there; ``None`` when it has ended."""
        while not started.has_ended:
            pid = started.program_pid()
            if pid != started.pid:
                with suppress(ProcessLookupError):
                    program = os.pidfd_open(pid)
                    stack.callback(os.close, program)
                    self._write_down(started)
                    return program
            await asyncio.sleep(PROGRAM_POLL_S)
        return None

    async def _begin_again(self, drivers: Drivers) -> None:
        self._start_process()
        self._connect()
        await drivers.attach("format", self.descriptors["format"])

    def _start_process(self) -> None:
        self.running = start_format_process(
            self._environment, self._device, self._disk, self._chain, self._write_down
        )

    def _write_down(self, started: Process) -> None:
        described = describe_process(started, self._device)
        self.described = described.model_copy(update={"capacity_bytes": self.size_bytes})
        self._note()

    def _connect(self) -> None:
        """Let the next drivers have a connection to the process that runs now. Raises ``PartitionError``."""
        assert self.running is not None
        with self.running.connect() as connection:
            fresh = connection.detach()
        old, self.descriptors["format"] = self.descriptors.get("format"), fresh
        if old is not None:
            os.close(old)

    async def stop_watching(self) -> None:
        """Do nothing more by itself; what runs goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


async def _end_program(pidfd: int) -> None:
    """Kill a program that is not our child, and wait until it is gone."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)


def take_connection(descriptors: Sequence[int], path: str) -> int | None:
    """Of these sockets, which it closes, the one that is connected to ``path``."""
    taken = None
    for descriptor in descriptors:
        with socket.socket(fileno=descriptor) as candidate:
            if taken is None and _peer_of(candidate) == path:
                taken = candidate.detach()
    return taken


def _peer_of(candidate: socket.socket) -> object:
    try:
        return candidate.getpeername()
    except OSError:
        return None
