"""A virtual machine as a whole: its place on the host, its console, and the incarnation that runs it.

``Machine.start`` is the one way to run a VM in either design. A machine ends in one of two ways: ``clean_up``
takes away everything it made on the host, in reverse order, whatever happened in between; ``detach`` leaves
it running for ``Machine.adopt``, in this process or another.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from duovisor.controlling.console import Console
from duovisor.controlling.description import MachineDescription, Phase, write_description
from duovisor.controlling.full_disks import FullDisks
from duovisor.controlling.incarnation import Incarnation
from duovisor.controlling.machine_checks import check_start
from duovisor.controlling.machine_limits import limit_disks_inside
from duovisor.controlling.machine_place import CURRENT, Place, make_place
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.moving.recovery import conclude_move, take_disks_back
from duovisor.controlling.plugging.memory import look_at_memory
from duovisor.controlling.plugging.plug import conclude
from duovisor.controlling.resources.vm_group import VmGroup, find_vm_group, open_vm_group
from duovisor.controlling.snapshots.loading import loading, open_state
from duovisor.controlling.snapshots.paging import can_page
from duovisor.controlling.supervision.factories import WAITING_AFTER_S, Factories
from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind, ignore_driver_events
from duovisor.controlling.vmm_choice import VmmDecision
from duovisor.hardware.accelerator import AcceleratorDecision
from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.memory import create_memory_file, create_module_files
from duovisor.hypervisor.qemu.console import CONSOLE_SOCKET, port_socket
from duovisor.hypervisor.vmm import Vmm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from duovisor.controlling.machine_checks import CheckedStart
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.controlling.snapshots.loading import SavedMachine
    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.controlling.supervision.records import Tell
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.lifecycle import State
    from duovisor.process import Process
    from duovisor.spec.vm import VirtualMachineSpec

SHUTDOWN_GRACE_S = 20.0
ENDING_S = 10.0  # between the end of a VMM's sockets and its own
# spares of a restored guest: it loads its memory first, at the latest; then it has something to do at once
SPARES_AFTER_LOADING_S, SPARES_AFTER_S = 20.0, 2.0


class Machine:
    """A running virtual machine; ``current`` is its VMM with the drivers and helpers beside it.

    ``other`` is there while the VM moves from one VMM to another (``controlling/moving``), which takes
    ``moving`` for as long.
    """

    def __init__(
        self,
        decision: AcceleratorDecision,
        place: Place,
        factories: Factories,
        tell: Tell,
        *,
        uuid: str = "",
        started_at: float = 0.0,
    ) -> None:
        self.decision = decision
        self.place = place
        self.current: Incarnation
        self.other: Incarnation | None = None
        self.die_with_owner = False
        self.moving = asyncio.Lock()
        self.memory_note = ""  # what is to be known of memory that came to the guest
        self.console: Console
        self.console_log: Path
        self.description: MachineDescription
        self.group: VmGroup
        self._uuid = uuid
        self._started_at = started_at or time.time()
        self._phase = Phase.STARTING
        self._is_gone = False
        self._factories = factories
        self._tell = tell
        self._concluding: set[asyncio.Task[None]] = set()
        self._full_disks = FullDisks(self, tell)

    @property
    def spec(self) -> VirtualMachineSpec:
        return self.current.spec

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def run_dir(self) -> Path:
        return self.place.run_dir

    @property
    def vmm(self) -> Vmm:
        return self.current.vmm

    @property
    def devices(self) -> Mapping[str, DeviceSupervisor]:
        return self.current.devices

    @property
    def helpers(self) -> Mapping[str, Process]:
        return self.current.helpers

    @classmethod
    async def start(
        cls,
        spec: VirtualMachineSpec,
        capabilities: HostCapabilities,
        directories: Directories,
        factories: Factories,
        tell: Tell = ignore_driver_events,
        *,
        uuid: str = "",
        die_with_owner: bool = False,
        console_log: Path | None = None,
        lasting: Path | None = None,
        saved: SavedMachine | None = None,
    ) -> Machine:
        """Start a VM in the design of its specification.

        ``factories`` make the partitions of its drivers, and ``tell`` is told what happens to those. ``uuid``
        names it to who may adopt it; without one it is undone when its owner was killed. ``die_with_owner``:
        its VMM ends when this process is killed. What the guest prints is kept in ``console_log``, by default
        in the run folder; ``lasting`` is the folder of what outlasts this run. It begins where it was
        ``saved``, if it was. Raises ``DuovisorError``, with everything undone; every check that can be made
        is made before the first process starts.
        """
        checked = check_start(spec, capabilities)
        with ExitStack() as undo:
            held = undo.enter_context(checked.open_disks)
            place = await make_place(spec.name, directories, lasting)
            undo.callback(place.remove)
            machine = cls(checked.decision, place, factories, tell, uuid=uuid)
            machine.die_with_owner = die_with_owner
            machine.console_log = console_log or place.run_dir / "console.log"
            run_dir = place.open_incarnation(1)
            pages = saved is not None and can_page()
            plan = checked.build_plan(run_dir, place, restored=saved is not None, on_demand=pages)
            vmm = Vmm(plan, run_dir, checked.tools)
            machine.current = machine.make_incarnation(1, spec, checked.vmm, vmm, held)
            undo.pop_all()
        try:
            machine.group = VmGroup(spec, None)
            machine.write()  # from here on a successor can undo what we do
            create_memory_file(place.memory_file, spec.memory_mib, vmm.owner)
            if spec.memory_room_mib > spec.memory_mib:
                create_module_files(place.memory_file, vmm.owner)
            await machine._begin(checked, saved, pages=pages)
            spares_after_s = 0.0 if saved is None else SPARES_AFTER_S
            await machine._settle(adopted=False, spares_after_s=spares_after_s)
            factories.prepare_vmm(spares_after_s)
            factories.prepare_partitions(spares_after_s + WAITING_AFTER_S)
        except BaseException:
            await machine.clean_up()
            raise
        return machine

    async def _begin(self, checked: CheckedStart, saved: SavedMachine | None, *, pages: bool) -> None:
        begin = partial(
            self.current.begin,
            checked,
            self.console_log,
            kept=self.place.kept,
            die_with_owner=self.die_with_owner,
        )
        if saved is None:
            await self._prepare(checked)
            await begin()
            await self.current.run()
            return
        self.current.spares_after_s = SPARES_AFTER_LOADING_S
        load = self.current.paging.loading if pages else loading
        async with load(saved, self.place.memory_file) as loaded:
            await self._prepare(checked)
            state = open_state(saved)
            try:
                await begin(state=state)
            finally:
                os.close(state)
            await self.current.run(loaded)
            await self.current.paging.note_running()

    async def _prepare(self, checked: CheckedStart) -> None:
        self.group = await open_vm_group(checked.spec, checked.capabilities, self.run_dir)
        self.current.prepare()

    @classmethod
    async def adopt(
        cls,
        folder: RunFolder,
        left: MachineDescription,
        directories: Directories,
        console_log: Path,
        factories: Factories,
        capabilities: Callable[[], HostCapabilities],
        tell: Tell = ignore_driver_events,
        *,
        lasting: Path | None = None,
    ) -> Machine:
        """Take over a VM that runs without an owner; ``folder`` is its run folder and goes over to it.

        ``capabilities`` may block, and is asked when format processes may have to be started. A device
        without a driver gets one; helpers that have ended meanwhile are missing from ``helpers``. Raises
        ``VmmGoneError`` when the VMM has ended, ``VmmStartError`` when it never ran its guest, ``QmpError``
        or ``QmpTimeoutError``; then nothing has changed and ``folder`` is the caller's.
        """
        moved = await conclude_move(left, folder.path)
        left = moved.description
        place = Place(folder, open_memory_folder(directories.runtime), lasting)
        decision = AcceleratorDecision(left.accelerator, left.accelerator_reason)
        machine = cls(decision, place, factories, tell, uuid=left.uuid, started_at=left.started_at)
        machine.description = left
        machine.console_log = console_log
        found = left.current
        run_dir = place.run_dir / str(found.number)
        vmm = Vmm(left.build_plan(found), run_dir)
        chosen = VmmDecision(found.vmm, found.vmm_reason)
        machine.current = machine.make_incarnation(found.number, found.spec, chosen, vmm, ExitStack())
        try:
            pids = [each.watched_pid for each in found.processes if each.is_vmm]
            machine.group = find_vm_group(found.spec, pids[0]) if pids else VmGroup(found.spec, None)
            await machine.current.adopt(found, console_log, capabilities)
            machine.memory_note = await look_at_memory(machine)
            if moved.is_undone:
                take_disks_back(machine.current)
                await machine.current.resume()
            await machine._settle(adopted=True)
        except BaseException:
            await machine._let_go()
            place.memory.release()
            raise
        return machine

    def make_incarnation(
        self, number: int, spec: VirtualMachineSpec, decision: VmmDecision, vmm: Vmm, held: ExitStack
    ) -> Incarnation:
        """An incarnation that is not begun; ``held`` goes over to it."""
        made = Incarnation(number, spec, decision, vmm, held, self._factories, self._tell, self.write)
        vmm.on_unplugged = lambda device: self._conclude(self._conclude_unplug(device))
        vmm.on_full = lambda device: self._conclude(self._note_full(device))
        vmm.on_memory_told = lambda: self._conclude(self._note_memory())
        made.on_full = self._full_disks.note
        return made

    async def _note_memory(self) -> None:
        """The guest said something of memory that came to it."""
        with suppress(HypervisorError):  # the VMM has ended
            self.memory_note = await look_at_memory(self)

    async def _note_full(self, device: str) -> None:
        """The VMM met a full file system, and stands still."""
        with suppress(HypervisorError, LookupError):  # it ended, or the device did
            await self._full_disks.note(device)

    def _conclude(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what follows from something that the VMM told."""
        task = asyncio.create_task(work)
        self._concluding.add(task)
        task.add_done_callback(self._concluding.discard)

    async def _conclude_unplug(self, device: str) -> None:
        """A guest may let go of a device without being asked, or long after."""
        with suppress(HypervisorError):  # the VMM has ended, and all its devices with it
            if await conclude(self, device):
                said = "the guest let go of it; it comes back at the next start"
                self._tell(DriverEvent(DriverEventKind.GONE, device, said))

    async def clean_up(self) -> None:
        """End the VM and remove all it left on the host; the disks' content stays. Once is enough."""
        if self._is_gone:
            return
        self._is_gone = True
        await self._stop_concluding()
        async with AsyncExitStack() as stack:
            stack.callback(self.place.remove)
            stack.callback(self.group.close)
            stack.push_async_callback(self.current.end)
            stack.push_async_callback(self._close_console)

    async def detach(self) -> None:
        """Let go of the VM, which runs on; this object is of no use any more."""
        await self._let_go()
        self.place.release()

    async def _stop_concluding(self) -> None:
        await self._full_disks.close()
        for task in (concluding := tuple(self._concluding)):
            task.cancel()
        await asyncio.gather(*concluding, return_exceptions=True)

    async def _let_go(self) -> None:
        await self._stop_concluding()
        await self._close_console()
        await self.current.let_go()

    async def _close_console(self) -> None:
        if hasattr(self, "console"):
            await self.console.close()

    def port_path(self, port: str) -> Path:
        """The Unix socket of the virtio-serial port with this name. Raises ``ValueError``."""
        return self.run_dir / CURRENT / f"{port_socket(self.spec.all_ports.index(port))}.sock"

    async def shut_down(self, *, grace_s: float = SHUTDOWN_GRACE_S) -> bool:
        """Press the power button and wait; returns whether the guest shut down within ``grace_s`` seconds."""
        await self.vmm.press_power_button()
        return await self.vmm.ends_within(grace_s)

    async def wait_ended(self) -> State:
        """Wait until the VM has ended, in whichever incarnation."""
        while True:
            watched = self.current
            state = await watched.vmm.wait_ended()
            async with self.moving:  # if it is just moving, that is not decided yet
                if self.current is watched:
                    return state

    def write(self) -> None:
        """Write down which processes there are, and limit those that are new and wait for that."""
        self.description = MachineDescription(
            uuid=self._uuid,
            phase=self._phase,
            accelerator=self.decision.accelerator,
            accelerator_reason=self.decision.reason,
            owner_pid=os.getpid(),
            memory_file=str(self.place.memory_file),
            started_at=self._started_at,
            current=self.current.describe(),
            other=self.other.describe() if self.other is not None else None,
        )
        write_description(self.run_dir, self.description)
        for incarnation in self.description.incarnations:
            for each in incarnation.processes:
                self.group.place(each.device, each.watched_pid)

    async def _settle(self, *, adopted: bool, spares_after_s: float = 0.0) -> None:
        """The VMM runs: listen to its console, and tell others that it does."""
        await limit_disks_inside(self.current)
        self.place.point_to(self.current.number)
        socket_path = self.vmm.socket_path(CONSOLE_SOCKET)
        try:
            self.console = await Console.connect(socket_path, self.console_log, resume=adopted)
        except ConnectionRefusedError:
            if adopted or not await self.vmm.ends_within(ENDING_S):
                raise
            self.console = await Console.of_ended(socket_path, self.console_log)
        self._phase = Phase.RUNNING
        self.current.settle()
        for device in self.devices.values():
            device.want_spare(spares_after_s)
        self._full_disks.watch()


@asynccontextmanager
async def start_machine(
    spec: VirtualMachineSpec,
    capabilities: HostCapabilities,
    directories: Directories,
    *,
    tell: Tell = ignore_driver_events,
    die_with_owner: bool = True,
) -> AsyncIterator[Machine]:
    """Start a VM in the foreground; on leaving, end it and remove all it left.

    Raises as ``Machine.start``.
    """
    factories = Factories(directories.runtime, end_with_owner=die_with_owner)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(factories.close)
        machine = await Machine.start(
            spec, capabilities, directories, factories, tell, die_with_owner=die_with_owner
        )
        stack.push_async_callback(machine.clean_up)
        yield machine
