"""The owner's side of the factory of driver partitions: one process that forks them within milliseconds.

Its protocol stands in ``drivers/factory.py``. It runs the code that was on disk when it was started: for
newer code one starts a new factory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor import process
from duovisor.controlling.drivers.control import receive_packet, send_packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.code_digest import read_code_digest as read_code_digest
from duovisor.controlling.partitions.control import ControlConnection
from duovisor.controlling.partitions.errors import PartitionGoneError
from duovisor.controlling.partitions.partition import Partition, PartitionProcess
from duovisor.controlling.python_runtime import PACKAGE, find_package_folders, interpreter
from duovisor.process_identity import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from duovisor.controlling.partitions.limits import PartitionLimits

TITLE, WAITING_TITLE = "duovisor-partition", "duovisor-partition waits"
MAIN = "from duovisor.controlling.drivers.factory import main; main()"
START_TIMEOUT_S = 30.0  # for what hangs: a busy host that is emulated was seen to take ten
REMEDY = "this user must be allowed to make user namespaces; or run the service as root"


class Modules(StrEnum):
    """What a factory has imported for its partitions besides duovisor's own drivers."""

    USUAL = "usual"
    LIBRARY = "library"
    ENCRYPTION = "encryption"


class _Made(NamedTuple):
    """What the factory says of a new partition; ``pidfd`` is ours to close."""

    identity: ProcessIdentity
    pidfd: int


def build_factory_argv(
    main: str, control: int, code: str, log: Path, *, end_with_owner: bool, modules: Modules = Modules.USUAL
) -> tuple[str, ...]:
    """The factory's command line; ``log`` is there for whoever reads ``ps``. Raises ``PartitionError``."""
    switches = ["--end-with-owner"] if end_with_owner else []
    if modules is Modules.LIBRARY:
        switches.append("--library")
    elif modules is Modules.ENCRYPTION:
        folders = find_package_folders("cryptography", "_cffi_backend")
        switches += ["--encryption", os.pathsep.join(map(str, folders))]
    # -S -s: no site-packages; -P: nothing from the working directory; -B: nothing is written
    return (
        str(interpreter()), "-S", "-s", "-P", "-B", "-c", main,
        str(control), code, *switches, "--log", str(log),
    )  # fmt: skip


class PartitionFactory:
    """A running factory. ``code`` is the digest of the driver code that its partitions run."""

    def __init__(self, running: process.Process, control: socket.socket, code: str) -> None:
        control.setblocking(False)
        self.process = running
        self.code = code
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._numbers = 0
        self._pending: dict[int, asyncio.Future[_Made]] = {}
        self._partitions: dict[int, PartitionProcess] = {}
        self._ended = False
        self._loop.add_reader(control, self._read)

    @classmethod
    async def start(
        cls, *, log: Path, end_with_owner: bool, modules: Modules = Modules.USUAL, main: str = MAIN
    ) -> PartitionFactory:
        """Start a factory; ``end_with_owner``: it kills its partitions when this process ends.

        ``modules``: see ``drivers/library.py``. ``main`` is the Python code that it runs. Raises
        ``PartitionError``, ``ProgramNotFoundError``.
        """
        # read before the factory imports it: of an update that comes in between, the digest is the older one
        code = read_code_digest()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                argv = build_factory_argv(
                    main, theirs.fileno(), code, log, end_with_owner=end_with_owner, modules=modules
                )
                running = process.start(
                    argv,
                    role="partition factory", log=log, pass_fds=(theirs.fileno(),), env=_environment(),
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        factory = cls(running, ours, code)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await factory._ready
        except BaseException as error:
            running.kill_now()
            await factory.close()
            if not isinstance(error, TimeoutError | PartitionError):
                raise  # it was cancelled
            raise PartitionError(f"the partition factory did not start: {running.last_words()}") from error
        return factory

    @property
    def has_ended(self) -> bool:
        return self._ended

    async def create(
        self,
        *,
        name: str,
        uid: int,
        gid: int,
        log: Path,
        limits: PartitionLimits,
        role: str = "storage driver",
        timeout_s: float = START_TIMEOUT_S,
    ) -> Partition:
        """Make a partition; it is confined and waits at its gate when this returns.

        ``name`` is shown by ``ps`` and in errors; ``uid`` and ``gid`` count when root owns the factory.
        Raises ``PartitionError``, with everything undone.
        """
        argv = (TITLE, name, str(log))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"uid": uid, "gid": gid, "limits": asdict(limits), "title": " ".join(argv)}
        with theirs:
            try:
                made = await self._order(order, theirs, log, timeout_s)
            except BaseException:
                ours.close()
                raise
        running = PartitionProcess(made.identity, made.pidfd, argv, role, log)
        self._partitions[running.pid] = running
        partition = Partition(name, running, ControlConnection(ours))
        try:
            async with asyncio.timeout(timeout_s):
                await partition.control.next_event()  # it is ready
        except BaseException as error:
            partition.control.close()
            await running.kill()
            if isinstance(error, TimeoutError | PartitionGoneError):
                raise PartitionError(f"partition {name} did not start: {running.last_words()}") from error
            raise
        return partition

    def keep(self, count: int) -> None:
        """Have it make partitions beforehand, until so many wait; those given away are not replaced."""
        with contextlib.suppress(OSError):  # it has ended, or is busy: the next ones are born when needed
            if not self._ended:
                title = f"{WAITING_TITLE} {self.process.log}"
                send_packet(self._control, {"do": "keep", "count": count, "title": title})

    async def close(self) -> None:
        """End the factory, and its partitions if they are to end with their owner."""
        self._end("it was closed")
        await self.process.wait()

    async def _order(self, order: dict[str, Any], birth: socket.socket, log: Path, timeout_s: float) -> _Made:
        if self._ended:
            raise PartitionGoneError("the partition factory has ended", remedy="start another")
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[_Made] = self._loop.create_future()
        self._pending[number] = answer
        try:
            with log.open("ab") as output:
                message = {"do": "create", "id": number, **order}
                send_packet(self._control, message, (birth.fileno(), output.fileno()))
            async with asyncio.timeout(timeout_s):
                return await answer
        except (OSError, DriverError) as error:  # TimeoutError is an OSError
            raise PartitionError(f"the partition factory does not answer: {error}") from error
        finally:
            self._pending.pop(number, None)

    def _read(self) -> None:
        try:
            while (packet := receive_packet(self._control)) is not None:
                self._take(packet.message, packet.descriptors)
                packet.close()
        except (EOFError, OSError, DriverError, KeyError, TypeError) as error:
            self._end(str(error))

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if message.get("event") == "ready":
            if not self._ready.done():
                self._ready.set_result(None)
        elif message.get("event") == "ended":
            ended = self._partitions.pop(message["pid"], None)
            if ended is not None:
                ended.tell_status(message["status"])
        else:
            self._answer(message, descriptors)

    def _answer(self, message: dict[str, Any], descriptors: list[int]) -> None:
        answer = self._pending.get(message["id"])
        if answer is None or answer.done():
            return  # nobody waits any more: its birth socket is closed, so it ends by itself
        if message["ok"]:
            identity = ProcessIdentity(message["pid"], message["start_ticks"])
            answer.set_result(_Made(identity, descriptors.pop()))
        else:
            remedy = "" if os.geteuid() == 0 else REMEDY
            answer.set_exception(PartitionError(message["message"], remedy=remedy))

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._control)
        self._control.close()
        waiting: Sequence[asyncio.Future[Any]] = (self._ready, *self._pending.values())
        for future in waiting:
            if not future.done():
                future.set_exception(PartitionGoneError(f"the partition factory is gone: {reason}"))
        for partition in self._partitions.values():
            partition.tell_status(None)
        self._partitions.clear()


def _environment() -> dict[str, str]:
    """Two arenas are enough for malloc: threads hold the interpreter's lock while they allocate."""
    return {"PYTHONPATH": str(PACKAGE.parent), "MALLOC_ARENA_MAX": "2", "PATH": os.defpath}
