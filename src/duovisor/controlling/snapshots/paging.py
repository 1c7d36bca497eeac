"""A restored guest that runs before its memory is loaded: the owner's side of its pager.

The pager (``drivers/pager.py``) is a partition: as confined as a driver, and it outlives its owner. When all
is loaded it stays until an owner has taken note of that: one that is gone has died, and what is missing of
the guest's memory is lost with it. Then the VM is ended; its snapshot is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor import process
from duovisor.controlling.description import describe_process
from duovisor.controlling.drivers.pager import PACE_MAX_S, open_userfaultfd
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.control import ControlConnection, bind_listener
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.snapshots.folder import MEMORY as SAVED_MEMORY
from duovisor.controlling.snapshots.folder import explaining
from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind
from duovisor.controlling.supervision.seat import Seat
from duovisor.hypervisor.errors import VmmGoneError
from duovisor.hypervisor.thin_plan import PAGER, STATE, USERFAULT
from duovisor.sandbox import uid_of
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.snapshots.loading import SavedMachine
    from duovisor.controlling.supervision.factories import Factories
    from duovisor.controlling.supervision.records import Tell
    from duovisor.hypervisor.vmm import Vmm

DEVICE, ROLE = "memory", "pager"
DEV_USERFAULTFD = Path("/dev/userfaultfd")  # Linux 6.1; root's alone, as it holds up accesses of the kernel
ENDING_TOGETHER_S = 1.0
LOAD_TIMEOUT_S = 30.0  # it looks through the saved memory
PACE_S = 0.0  # between two pieces that nobody waits for


def can_page() -> bool:
    """Whether memory can come on demand here; may be asked at each restore."""
    try:
        maker = os.open(DEV_USERFAULTFD, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(open_userfaultfd(maker))
    except OSError:
        return False
    finally:
        os.close(maker)
    return True


class Paging:
    """The pager of one VMM's guest, while there is one; ``note`` is called when ``describe`` has changed."""

    def __init__(self, vmm: Vmm, factories: Factories, tell: Tell, note: Callable[[], None]) -> None:
        self._vmm = vmm
        self._factories = factories
        self._tell = tell
        self._note = note
        self._seat: Seat | None = None
        self._is_up = False
        self._maker = -1
        self._loaded = asyncio.Event()
        self._loaded.set()
        self._prepared, self._running = asyncio.Event(), asyncio.Event()
        self._waiting: list[int] = []  # ends for a pager that has not begun
        self._task: asyncio.Task[None] | None = None
        self._began = time.monotonic()
        self._before: Any = None

    @property
    def is_loading(self) -> bool:
        """Whether part of the memory is still missing."""
        return not self._loaded.is_set()

    def describe(self) -> list[ProcessDescription]:
        """The pager, for the VM's description."""
        if self._seat is None or not self.is_loading:
            return []
        described = describe_process(self._seat.process, DEVICE)
        return [described.model_copy(update={"control": self._seat.control_name})]

    async def set_pace(self, seconds: float) -> None:
        """Wait so long after each piece that nobody waits for. Raises ``PartitionError``."""
        if self._seat is not None:
            await self._seat.request("limit", pace_s=seconds)

    async def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until nothing is missing; whether that is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._loaded.wait()
        return self._loaded.is_set()

    # A life

    @asynccontextmanager
    async def loading(self, saved: SavedMachine, memory_file: Path) -> AsyncIterator[Awaitable[None]]:
        """Begin to fill the memory file, which is all holes; what is yielded ends when the guest may run.

        It raises ``PartitionError`` or ``SnapshotBrokenError``.
        """
        self._loaded.clear()
        self._maker = os.open(DEV_USERFAULTFD, os.O_RDWR | os.O_CLOEXEC)
        self._vmm_link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        task = asyncio.create_task(self._start(saved, memory_file, theirs))
        try:
            yield task
        except Exception as error:
            if task.done() and not task.cancelled() and (cause := task.exception()) is not None:
                raise cause from error  # others ended because of that
            raise
        finally:
            self._vmm_link.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def inherit(self, state: int | None) -> dict[str, int]:
        """The descriptors that a VMM inherits to go on from a saved state, if it does.

        The VM's group is there: what the pager fills from now on is charged to it.
        """
        self._prepared.set()
        if state is None:
            return {}
        paging = {PAGER: self._vmm_link.fileno(), USERFAULT: self._maker} if self.is_loading else {}
        return {STATE: state, **paging}

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Mapping[str, int]]:
        """What a driver gets to map the memory with. Raises ``PartitionError`` when the pager is gone."""
        if not self.is_loading:
            yield {}
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            if self._is_up and self._seat is not None:
                with theirs:
                    await self._seat.request("attach", {"client": theirs.fileno()})
            else:
                self._waiting.append(theirs.detach())
            yield {PAGER: ours.fileno(), USERFAULT: self._maker}

    async def _start(self, saved: SavedMachine, memory_file: Path, vmm_end: socket.socket) -> None:
        name, run_dir = self._vmm.plan.name, self._vmm.run_dir
        try:
            with vmm_end, contextlib.ExitStack() as files:
                with explaining(saved.folder):
                    source = os.open(saved.folder / SAVED_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
                files.callback(os.close, source)
                memory = os.open(memory_file, os.O_RDWR | os.O_CLOEXEC)
                files.callback(os.close, memory)
                factory = await self._factories.get()
                partition = await factory.create(
                    name=f"{name}/{DEVICE}", uid=uid_of(name), gid=uid_of(name), role=ROLE,
                    log=run_dir / f"{DEVICE}.log", limits=build_limits(self._vmm.plan.memory_mib),
                )  # fmt: skip
                control_name = f"{DEVICE}.{partition.process.pid}.control"
                seat = Seat(partition.process, partition.control, factory.code, control_name, _ignore)
                self._seat = seat
                await self._prepared.wait()
                self._note()
                listener = files.enter_context(bind_listener(run_dir / control_name))
                given = {
                    "source": source, "memory": memory, USERFAULT: self._maker,
                    "vmm": vmm_end.fileno(), "listener": listener.fileno(),
                }  # fmt: skip
                await seat.request("load", given, timeout_s=LOAD_TIMEOUT_S, pace_s=PACE_MAX_S)
            self._is_up = True
            while self._waiting:
                client = self._waiting.pop()
                try:
                    await seat.request("attach", {"client": client})
                finally:
                    os.close(client)
        except BaseException:
            self._close_waiting()  # who waits for an answer learns that there is none
            raise
        self._follow(seat)

    def _follow(self, seat: Seat) -> None:
        self._task = asyncio.create_task(self._watch(seat), name=f"watch pager of {self._vmm.plan.name}")

    async def note_running(self) -> None:
        """The guest runs: fill what it does not ask for, too; until now its start had the processors."""
        self._running.set()
        if self._seat is not None:
            with contextlib.suppress(PartitionError):  # it has ended, as its watcher sees
                self._before = (await self._seat.request("status")).get("there")
                await self.set_pace(PACE_S)

    async def adopt(self, processes: Iterable[ProcessDescription]) -> None:
        """Take over the pager that a previous owner left, if it left one.

        Raises ``VmmGoneError`` when it has ended before all was loaded: the guest waits for ever.
        """
        left = next((each for each in processes if each.role == ROLE and each.control), None)
        if left is None:
            return
        run_dir = self._vmm.run_dir
        running = process.adopt(left.identity, left.argv, role=ROLE, log=run_dir / left.log, sandboxed=False)
        try:
            if running is None:
                raise PartitionError("it has ended")
            control = await ControlConnection.connect(run_dir / left.control)
            seat = Seat(running, control, "", left.control, _ignore)
            self._seat = seat
            self._maker = os.open(DEV_USERFAULTFD, os.O_RDWR | os.O_CLOEXEC)
            if _is_whole(await seat.request("status")):
                seat.note("loaded")
        except (PartitionError, OSError) as error:
            raise VmmGoneError(
                f"{self._vmm.plan.name}: its pager is gone, and with it memory that was not loaded: {error}",
                remedy="restore the snapshot again",
            ) from error
        self._loaded.clear()
        self._running.set()
        self._is_up = True
        self._follow(seat)

    async def end(self) -> None:
        """End the pager; the VMM has ended."""
        await self._stop()
        await self._dismiss()

    async def let_go(self) -> None:
        """Leave the pager at its work."""
        await self._stop()
        seat, self._seat = self._seat, None
        if seat is not None:
            await seat.close()
        self._close_files()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _dismiss(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            await seat.kill()
            (self._vmm.run_dir / seat.control_name).unlink(missing_ok=True)
        self._close_files()

    def _close_files(self) -> None:
        self._close_waiting()
        maker, self._maker = self._maker, -1
        if maker >= 0:
            os.close(maker)

    def _close_waiting(self) -> None:
        while self._waiting:
            os.close(self._waiting.pop())

    # Its work

    async def _watch(self, seat: Seat) -> None:
        while not (seat.has_said("loaded") or seat.has_ended):
            await seat.wait_for("loaded", timeout_s=3600.0)
        if seat.has_said("loaded"):
            await self._conclude(seat)
        elif seat.process.returncode not in (0, None) or not await self._vmm.ends_within(ENDING_TOGETHER_S):
            await self._lose(seat)

    async def _conclude(self, seat: Seat) -> None:
        await self._running.wait()
        report: dict[str, Any] = {}
        with contextlib.suppress(PartitionError):
            report = await seat.request("status")
        self._loaded.set()
        self._note()  # first: to our successor, the end of one that is still written down is a loss
        await self._dismiss()
        told = describe_loaded(report, self._before, time.monotonic() - self._began)
        self._tell(DriverEvent(DriverEventKind.MEMORY_LOADED, DEVICE, told))

    async def _lose(self, seat: Seat) -> None:
        vmm = self._vmm.process
        if vmm is None or vmm.has_ended:
            return
        said = (
            f"{seat.describe()} {seat.describe_end()}; part of the guest's memory was not loaded, so the VM "
            "is ended; its snapshot can be restored again"
        )
        self._tell(DriverEvent(DriverEventKind.MEMORY_LOST, DEVICE, said))
        await vmm.kill()


def describe_loaded(report: Mapping[str, Any], before: Any, seconds: float) -> str:
    """What a pager has done, in words; pure. It is not trusted: what is no number is left out."""
    total, faults = report.get("total"), report.get("faults")
    said = f"{format_bytes(total)} of memory loaded" if type(total) is int else "memory loaded"
    if type(before) is int:
        said += f", {format_bytes(before)} of it before the guest ran"
    if type(faults) is int:
        said += f"; pages were waited for {faults} times"
    return f"{said}; {seconds:.1f} s"


def _is_whole(report: Mapping[str, Any]) -> bool:
    return type(report.get("total")) is int and report.get("total") == report.get("there")


def _ignore() -> None:
    """Nobody supervises it but ``Paging``."""
