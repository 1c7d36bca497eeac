"""A virtual machine as a whole: one VMM, and in the microkernelized design its driver partitions.

``Machine.start`` is the one way to run a VM in either design. A machine ends in one of two ways: ``clean_up``
takes away everything it made on the host, in reverse order, whatever happened in between; ``detach`` leaves
it running for ``Machine.adopt``, in this process or another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from duovisor.controlling.channel_socket import connect_channel, wait_channels
from duovisor.controlling.console import Console
from duovisor.controlling.description import (
    MachineDescription,
    Phase,
    PlanDescription,
    ProcessDescription,
    describe_process,
    find_program,
    write_description,
)
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.machine_checks import check_start
from duovisor.controlling.machine_devices import plan_disk, plan_nic
from duovisor.controlling.machine_drivers import adopt_device, plan_device
from duovisor.controlling.machine_formats import adopt_keeper, build_format_environment, is_format_process
from duovisor.controlling.machine_networks import adopt_tap, open_taps
from duovisor.controlling.machine_place import Place, make_place
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.network_helper import start_network_helper
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.controlling.resources.vm_group import VmGroup, find_vm_group, open_vm_group
from duovisor.controlling.supervision.adoption import adopt_crew, adopt_image
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.factories import Factories
from duovisor.controlling.supervision.format import FormatKeeper
from duovisor.controlling.supervision.records import ignore_driver_events
from duovisor.hardware.accelerator import AcceleratorDecision
from duovisor.hypervisor.errors import HypervisorError, VmmGoneError, WrongStateError
from duovisor.hypervisor.qemu.console import CONSOLE_SOCKET, port_socket
from duovisor.hypervisor.qemu.devices import device_socket
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.hypervisor.vmm import Vmm
from duovisor.spec.vm import Design, DiskFormat

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from duovisor.controlling.machine_checks import CheckedStart
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.controlling.supervision.plan import DevicePlan
    from duovisor.controlling.supervision.records import Tell
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.process import Process
    from duovisor.spec.vm import VirtualMachineSpec

SHUTDOWN_GRACE_S = 20.0


class Machine:
    """A running virtual machine: its VMM, the drivers and helpers beside it, and its console.

    ``devices`` are those whose drivers are supervised; ``helpers`` are processes that nobody can succeed.
    """

    def __init__(
        self, description: MachineDescription, vmm: Vmm, place: Place, factories: Factories, tell: Tell
    ) -> None:
        self.spec = description.spec
        self.decision = AcceleratorDecision(description.accelerator, description.accelerator_reason)
        self.description = description
        self.vmm = vmm
        self.run_dir = place.folder.path
        self.devices: dict[str, DeviceSupervisor] = {}
        self.helpers: dict[str, Process] = {}
        self.console: Console
        self.group = VmGroup(description.spec, None)
        self._keepers: dict[str, FormatKeeper] = {}
        self._is_gone = False
        self._place = place
        self._factories = factories
        self._tell = tell

    @property
    def name(self) -> str:
        return self.spec.name

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
    ) -> Machine:
        """Start a VM in the design of its specification.

        ``factories`` make the partitions of its drivers, and ``tell`` is told what happens to those. ``uuid``
        names it to who may adopt it; without one it is undone when its owner was killed. ``die_with_owner``:
        its VMM ends when this process is killed. What the guest prints is kept in ``console_log``, by default
        in the run folder. Raises ``DuovisorError``, with everything undone; every check that can be made is
        made before the first process starts.
        """
        checked = check_start(spec, capabilities)
        place = await make_place(spec.name, directories, checked.open_disks)
        try:
            plan = checked.build_plan(place.folder.path, place.memory.path / spec.name)
            vmm = Vmm(plan, place.folder.path, checked.tools)
            machine = cls(_describe(checked, plan, uuid), vmm, place, factories, tell)
        except BaseException:
            place.remove()
            raise
        try:
            machine.group = await open_vm_group(spec, capabilities, machine.run_dir)
            machine._write(machine.description)  # from here on a successor can undo what we do
            machine.vmm.prepare()
            taps = open_taps(spec, place.disks)
            if spec.design is Design.MICROKERNELIZED:
                await machine._start_devices(checked, taps)
                taps = {}
            log = console_log or machine.run_dir / "console.log"
            machine.vmm.launch(log, die_with_owner=die_with_owner, record=machine._record, taps=taps)
            if plan.bound:
                await machine._start_late(plan.bound)
            await machine._run()
            await machine._settle(log, adopted=False)
        except BaseException:
            await machine.clean_up()
            raise
        return machine

    @classmethod
    async def adopt(
        cls,
        folder: RunFolder,
        description: MachineDescription,
        directories: Directories,
        console_log: Path,
        factories: Factories,
        capabilities: Callable[[], HostCapabilities],
        tell: Tell = ignore_driver_events,
    ) -> Machine:
        """Take over a VM that runs without an owner; ``folder`` is its run folder and goes over to it.

        ``capabilities`` may block, and is asked when format processes may have to be started. A device
        without a driver gets one; helpers that have ended meanwhile are missing from ``helpers``. Raises
        ``VmmGoneError`` when the VMM has ended, ``VmmStartError`` when it never ran its guest, ``QmpError``
        or ``QmpTimeoutError``; then nothing has changed and ``folder`` is the caller's.
        """
        place = Place(folder, open_memory_folder(directories.runtime))
        vmm = Vmm(description.build_plan(), folder.path)
        machine = cls(description, vmm, place, factories, tell)
        others = [each for each in description.processes if not each.control and not is_format_process(each)]
        running = {each.device: adopt_process(each, folder.path) for each in others}
        found = running.pop("", None)
        machine.helpers = {name: process for name, process in running.items() if process is not None}
        try:
            if found is None:
                raise VmmGoneError(f"{description.spec.name}: the VMM has ended")
            machine.group = find_vm_group(description.spec, found.pid)
            await machine.vmm.adopt(found)
            if machine.spec.design is Design.MICROKERNELIZED:
                await machine._adopt_devices(capabilities)
            await machine._settle(console_log, adopted=True)
        except BaseException:
            await machine._let_go()
            place.memory.release()
            raise
        return machine

    async def clean_up(self) -> None:
        """End the VM and remove all it left on the host; the disks' content stays. Once is enough."""
        if self._is_gone:
            return
        self._is_gone = True
        async with AsyncExitStack() as stack:
            stack.callback(self._place.remove)
            stack.callback(self.group.close)
            for helper in self.helpers.values():
                # with the VMM gone their channel is closed and most have ended by themselves
                stack.push_async_callback(helper.stop, grace_s=1.0)
            for name, keeper in self._keepers.items():
                if name not in self.devices:  # its start failed
                    stack.push_async_callback(keeper.end)
            for device in self.devices.values():
                stack.push_async_callback(device.end)
            stack.push_async_callback(self.vmm.clean_up)
            stack.push_async_callback(self._close_console)

    async def detach(self) -> None:
        """Let go of the VM, which runs on; this object is of no use any more."""
        await self._let_go()
        self._place.release()

    async def _let_go(self) -> None:
        await self._close_console()
        for device in self.devices.values():
            await device.detach()
        for name, keeper in self._keepers.items():
            if name not in self.devices:
                await keeper.detach()
        await self.vmm.detach()
        for helper in self.helpers.values():
            helper.release()

    async def _close_console(self) -> None:
        if hasattr(self, "console"):
            await self.console.close()

    def port_path(self, port: str) -> Path:
        """The Unix socket of the virtio-serial port with this name. Raises ``ValueError``."""
        return self.vmm.socket_path(port_socket(self.spec.ports.index(port)))

    async def shut_down(self, *, grace_s: float = SHUTDOWN_GRACE_S) -> bool:
        """Press the power button and wait; returns whether the guest shut down within ``grace_s`` seconds."""
        await self.vmm.press_power_button()
        try:
            await self.vmm.wait_ended(timeout_s=grace_s)
        except TimeoutError:
            return False
        return True

    async def wait_device_lost(self) -> PartitionError:
        """Wait until a device is given up, or a helper ends while it should serve; return what to say."""
        waits = {asyncio.create_task(p.wait(), name=name): name for name, p in self.helpers.items()}
        waits |= {asyncio.create_task(d.failed.wait(), name=name): name for name, d in self.devices.items()}
        try:
            if not waits:
                await asyncio.Future()  # nothing can be lost
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return self.describe_loss(waits[done.pop()])
        finally:
            for task in waits:
                task.cancel()

    def describe_loss(self, name: str) -> PartitionError:
        """What to say of the device ``name``, whose driver or helper is lost."""
        if name in self.devices:
            lost = self.devices[name]
            return PartitionError(f"{self.spec.name}: {lost.plan.role} of {name}: {lost.reason}")
        helper = self.helpers[name]
        return PartitionError(f"{self.spec.name}: {helper.role} of {name}: {helper.failure().message}")

    # What a device's supervisor needs of its VM

    def connect(self, device: str) -> socket.socket:
        """A fresh connection to the device's channel. Raises ``PartitionError`` when nobody listens."""
        try:
            return connect_channel(self.vmm.socket_path(device))
        except OSError as error:
            raise PartitionError(f"channel {device} of {self.spec.name} refuses: {error}") from error

    def record(self) -> None:
        """Write down which processes there are."""
        devices = {*self.devices, *self._keepers}
        fixed = [each for each in self.description.processes if each.device not in devices]
        formats = [find_program(each.described) for each in self._keepers.values() if each.described]
        crews = [each for device in self.devices.values() for each in device.crew.describe()]
        self._write(self.description.model_copy(update={"processes": (*fixed, *formats, *crews)}))

    async def wait_ended(self, *, timeout_s: float) -> bool:
        """Whether the VMM has ended, or does within that time."""
        try:
            await self.vmm.wait_ended(timeout_s=timeout_s)
        except TimeoutError:
            return False
        return True

    async def pause(self) -> bool:
        """Stop the processors; False when they did not run."""
        try:
            await self.vmm.pause()
        except WrongStateError:
            return False
        return True

    async def set_link(self, nic: str, *, up: bool) -> None:
        """Plug a network card's cable in or out; a VMM that does not answer is left alone."""
        with contextlib.suppress(HypervisorError):
            await self.vmm.set_link(nic, up=up)

    async def resume(self) -> None:
        """Let the processors go on."""
        with contextlib.suppress(WrongStateError):
            await self.vmm.resume()

    def _write(self, description: MachineDescription) -> None:
        """Write down which processes there are, and limit those that are new and wait for that."""
        self.description = description
        write_description(self.run_dir, description)
        for each in description.processes:
            self.group.place(each.device, each.watched_pid)

    def _record(self, process: Process, device: str = "") -> None:
        """Note a process before its program begins."""
        processes = (*self.description.processes, describe_process(process, device))
        self._write(self.description.model_copy(update={"processes": processes}))

    async def _start_devices(self, checked: CheckedStart, taps: dict[str, int]) -> None:
        for index, (disk, opened) in enumerate(zip(self.spec.disks, checked.disks, strict=True)):
            if disk.format is DiskFormat.RAW:
                self._add_device(plan_disk(self.spec, index, {"image": opened.descriptor}))
                continue
            name = disk_socket(index)
            environment = build_format_environment(
                self.name, self.run_dir, checked.tools, checked.capabilities
            )
            keeper = FormatKeeper(environment, name, disk, opened.chain, self.record)
            self._keepers[name] = keeper
            await keeper.start()
            self._add_device(plan_disk(self.spec, index, keeper.descriptors, keeper.size_bytes), keeper)
        for index in range(len(self.spec.nics)):
            if (tap := taps.get(nic_socket(index))) is not None:
                self._add_device(plan_nic(self.spec, index, {"tap": tap}))
        for index, device in enumerate(checked.devices):
            self._add_device(plan_device(self.spec, index, device, self._place.disks))
        early = [each for name, each in self.devices.items() if name not in self.vmm.plan.bound]
        await asyncio.gather(*(each.start() for each in early))
        passt = checked.capabilities.tools.passt
        for index, nic in enumerate(self.spec.nics):
            name = nic_socket(index)
            if name not in taps:
                self.helpers[name] = start_network_helper(
                    passt, self.run_dir, name, nic, partial(self._record, device=name)
                )

    async def _start_late(self, names: Iterable[str]) -> None:
        """Start the drivers that the VMM waits for on sockets of its own."""
        assert self.vmm.process is not None
        await wait_channels(map(self.vmm.socket_path, names), self.vmm.process)
        await asyncio.gather(*(self.devices[name].start() for name in names))

    def _add_device(self, plan: DevicePlan, keeper: FormatKeeper | None = None) -> DeviceSupervisor:
        supervisor = DeviceSupervisor(plan, self, self._factories, self._tell, keeper)
        self.devices[plan.device] = supervisor
        return supervisor

    async def _adopt_devices(self, capabilities: Callable[[], HostCapabilities]) -> None:
        """Take over the drivers; what no living driver holds is opened again, an image locked."""
        for index, disk in enumerate(self.spec.disks):
            found = self._find_partitions(disk_socket(index))
            if disk.format is not DiskFormat.RAW:
                await self._adopt_formatted(index, found, await asyncio.to_thread(capabilities))
                continue
            image = adopt_image(disk, [each.pid for each in found])
            self._place.disks.callback(image.close)
            await self._adopt_device(plan_disk(self.spec, index, {"image": image.descriptor}), found)
        for index, nic in enumerate(self.spec.nics):
            if nic.bridge is not None:
                found = self._find_partitions(nic_socket(index))
                tap = adopt_tap(self.spec, index, [each.pid for each in found], self._place.disks)
                await self._adopt_device(plan_nic(self.spec, index, {"tap": tap}), found)

        for index, device in enumerate(self.spec.devices):
            found = self._find_partitions(device_socket(index))
            opened = adopt_device(device, [each.pid for each in found], self._place.disks)
            await self._adopt_device(plan_device(self.spec, index, opened, self._place.disks), found)

    async def _adopt_formatted(
        self, index: int, found: list[ProcessDescription], capabilities: HostCapabilities
    ) -> None:
        name, disk = disk_socket(index), self.spec.disks[index]
        tools = find_sandbox_tools(self.spec.design, capabilities)
        environment = build_format_environment(self.name, self.run_dir, tools, capabilities)
        described = next(
            each for each in self.description.processes if each.device == name and is_format_process(each)
        )
        pids = [each.pid for each in found]
        keeper = adopt_keeper(environment, name, disk, described, pids, self.record)
        self._keepers[name] = keeper
        plan = plan_disk(self.spec, index, keeper.descriptors, keeper.size_bytes)
        await self._adopt_device(plan, found, keeper)

    def _find_partitions(self, device: str) -> list[ProcessDescription]:
        return [each for each in self.description.processes if each.device == device and each.control]

    async def _adopt_device(
        self, plan: DevicePlan, found: list[ProcessDescription], keeper: FormatKeeper | None = None
    ) -> None:
        device = self._add_device(plan, keeper)
        await adopt_crew(device.crew, found, self)
        device.supervise()

    async def _run(self) -> None:
        """Start the processors; a device that is given up meanwhile would leave the VMM waiting for ever."""
        run = asyncio.create_task(self.vmm.run())
        lost = asyncio.create_task(self.wait_device_lost())
        try:
            await asyncio.wait({run, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                raise lost.result()
            await run
        finally:
            for task in (run, lost):
                task.cancel()
            await asyncio.gather(run, lost, return_exceptions=True)

    async def _settle(self, console_log: Path, *, adopted: bool) -> None:
        """The VMM runs: listen to its console, and tell others that it does."""
        socket_path = self.vmm.socket_path(CONSOLE_SOCKET)
        self.console = await Console.connect(socket_path, console_log, resume=adopted)
        processes = sorted(map(find_program, self.description.processes), key=lambda each: not each.is_vmm)
        changes = {"phase": Phase.RUNNING, "owner_pid": os.getpid(), "processes": tuple(processes)}
        self.description = self.description.model_copy(update=changes)
        self.record()


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


def _describe(checked: CheckedStart, plan: LaunchPlan, uuid: str) -> MachineDescription:
    return MachineDescription(
        uuid=uuid,
        phase=Phase.STARTING,
        spec=checked.spec,
        accelerator=checked.decision.accelerator,
        accelerator_reason=checked.decision.reason,
        owner_pid=os.getpid(),
        memory_file=str(plan.memory_file),
        started_at=time.time(),
        plan=PlanDescription(argv=plan.argv, sockets=plan.sockets, channels=plan.channels, bound=plan.bound),
    )
