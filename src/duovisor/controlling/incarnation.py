"""One incarnation of a VM: a VMM, and in the microkernelized design the drivers and helpers beside it.

A VM has one; while it moves to another VMM it has two, each in a folder of its own in the run folder. What
outlasts an incarnation (guest memory, console, name) is the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from duovisor.controlling.channel_socket import connect_channel, wait_channels
from duovisor.controlling.description import (
    IncarnationDescription,
    describe_plan,
    describe_process,
    find_program,
)
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.machine_console import adopt_console, open_console, plan_console
from duovisor.controlling.machine_devices import plan_nic
from duovisor.controlling.machine_disks import adopt_disk, plan_disk
from duovisor.controlling.machine_drivers import adopt_device, plan_device
from duovisor.controlling.machine_formats import adopt_keeper, build_format_environment, is_format_process
from duovisor.controlling.machine_networks import adopt_tap, open_taps, remove_rules, restore_rules
from duovisor.controlling.media.change import adopt_media, settle_drive
from duovisor.controlling.media.drives import Media, is_media_server
from duovisor.controlling.network_helper import start_network_helper
from duovisor.controlling.plugging.recovery import settle_plugging
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.controlling.snapshots.paging import Paging
from duovisor.controlling.supervision.adoption import adopt_crew
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.format import FormatKeeper
from duovisor.controlling.tpm import start_tpm
from duovisor.hypervisor.errors import HypervisorError, VmmGoneError, WrongStateError
from duovisor.hypervisor.qemu.devices import device_socket
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.hypervisor.qemu.tpm import TPM_SOCKET
from duovisor.hypervisor.thin_plan import CONSOLE_CHANNEL
from duovisor.spec.vm import Design, DiskFormat, VmmKind

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from pathlib import Path

    from duovisor.controlling.description import DeviceChange, ProcessDescription
    from duovisor.controlling.formats.process import FormatEnvironment
    from duovisor.controlling.machine_checks import CheckedStart
    from duovisor.controlling.supervision.factories import Factories
    from duovisor.controlling.supervision.plan import DevicePlan
    from duovisor.controlling.supervision.records import Tell
    from duovisor.controlling.vmm_choice import VmmDecision
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.vmm import Vmm
    from duovisor.process import Process
    from duovisor.sandbox import SandboxTools
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

T = TypeVar("T")
SPARES_AFTER_S = 2.0  # at the latest: a start has better use for the processors


async def _let_wait(device: str) -> bool:
    """What ``on_full`` does for nobody."""
    return True


class Incarnation:
    """A VMM with what serves its devices; ``number`` names its folder.

    ``devices`` are those whose drivers are supervised; ``helpers`` are processes that nobody can succeed.
    ``taps`` are of its bridged cards, by the card's name. ``note`` is called when its description has
    changed, and ``tell`` is told what happens to drivers. ``held`` closes what its drivers are handed.
    """

    def __init__(
        self,
        number: int,
        spec: VirtualMachineSpec,
        decision: VmmDecision,
        vmm: Vmm,
        held: ExitStack,
        factories: Factories,
        tell: Tell,
        note: Callable[[], None],
    ) -> None:
        self.number = number
        self.spec = spec
        self.decision = decision
        self.vmm = vmm
        self.run_dir = vmm.run_dir
        self.held = held
        self.devices: dict[str, DeviceSupervisor] = {}
        self.helpers: dict[str, Process] = {}
        self.taps: dict[str, int] = {}
        self.ruled: set[str] = set()  # TAPs that got rules after the start
        self.change: DeviceChange | None = None
        self.changing_drive: int | None = None
        self.full: tuple[str, ...] = ()
        self.spares_after_s = SPARES_AFTER_S
        self.on_full: Callable[[str], Awaitable[bool]] = _let_wait
        self.files: dict[str, ExitStack] = {}  # of devices that were plugged in
        self.media = Media(vmm.run_dir, note, tell)
        self.paging = Paging(vmm, factories, tell, note)
        self.page_memory = self.paging.lend
        self._keepers: dict[str, FormatKeeper] = {}
        self._fixed: tuple[ProcessDescription, ...] = ()
        self._factories = factories
        self._tell = tell
        self._note = note

    @property
    def name(self) -> str:
        return self.spec.name

    def describe(self) -> IncarnationDescription:
        """The incarnation as others may find it, its VMM first."""
        formats = [find_program(each.described) for each in self._keepers.values() if each.described]
        crews = [each for device in self.devices.values() for each in device.crew.describe()]
        pagers = self.paging.describe()
        return IncarnationDescription(
            number=self.number,
            spec=self.spec,
            vmm=self.decision.kind,
            vmm_reason=self.decision.reason,
            plan=describe_plan(self.vmm.plan),
            processes=(*self._fixed, *formats, *map(find_program, self.media.describe()), *crews, *pagers),
            change=self.change,
            changing_drive=self.changing_drive,
            full=self.full,
        )

    # A life

    def prepare(self) -> None:
        """Bind sockets and open TAPs. Raises ``DuovisorError``; ``end`` undoes everything."""
        self.vmm.prepare()
        self.taps = open_taps(self.spec, self.held)

    async def begin(
        self,
        checked: CheckedStart,
        console_log: Path,
        *,
        kept: Path | None = None,
        die_with_owner: bool = False,
        old: Incarnation | None = None,
        state: int | None = None,
    ) -> None:
        """Start the processes after ``prepare``; the VMM has not been greeted and runs nothing yet.

        What the drivers of an ``old`` incarnation hold, those of this one are given too; ``state`` is the
        descriptor of a saved state that its VMM goes on from; ``kept`` is the folder of what outlasts a run.
        Raises ``DuovisorError``; ``end`` undoes everything.
        """
        inside, thin = self.spec.design is Design.MONOLITHIC, self.decision.kind is VmmKind.THIN
        if not inside and not thin:
            await self._start_devices(checked, console_log, old)
        if checked.tpm is not None and kept is not None:
            record = partial(self.record_process, device=TPM_SOCKET)
            self.helpers[TPM_SOCKET] = start_tpm(checked.tpm, self.name, self.run_dir, kept, record)
        self.vmm.launch(
            console_log,
            die_with_owner=die_with_owner,
            record=self.record_process,
            taps=self.taps if inside else self.paging.inherit(state),
            take_spare=self._factories.take_vmm if thin else None,
        )
        if thin:  # it makes itself ready meanwhile, then waits for them
            await self._start_devices(checked, console_log, old)
        if self.vmm.plan.bound:
            await self._start_late(self.vmm.plan.bound)

    def list_images(self) -> list[tuple[DiskSpec, int]]:
        """The raw images that drivers serve, with their descriptors."""
        found = []
        for index, disk in self.spec.numbered_disks():
            device = self.devices.get(disk_socket(index))
            if device is not None and "image" in device.plan.descriptors:
                found.append((disk, device.plan.descriptors["image"]))
        return found

    async def run(self, loaded: Awaitable[None] | None = None) -> None:
        """Greet the VMM and, when its memory is ``loaded``, start the processors.

        Raises ``VmmStartError``, ``PartitionError``, or what ``loaded`` raises.
        """
        await self.unless_lost(self.vmm.greet())
        if loaded is not None:
            await loaded
        await self.unless_lost(self.vmm.go())

    def forget_processes(self, device: str) -> None:
        """Those that served a device which is gone have ended."""
        self._fixed = tuple(each for each in self._fixed if each.device != device or each.is_vmm)

    def settle(self) -> None:
        """Every process has its own number by now; write down which."""
        self._fixed = tuple(sorted(map(find_program, self._fixed), key=lambda each: not each.is_vmm))
        self._note()

    async def adopt(
        self,
        left: IncarnationDescription,
        console_log: Path,
        capabilities: Callable[[], HostCapabilities],
    ) -> None:
        """Take over what a previous owner left running.

        Raises ``VmmGoneError``, ``VmmStartError`` when the VMM never ran its guest, ``QmpError`` or
        ``QmpTimeoutError``; ``let_go`` then.
        """
        self.changing_drive = left.changing_drive
        others = (each for each in left.processes if not each.control)
        self._fixed = tuple(e for e in others if not is_format_process(e) and not is_media_server(e))
        running = {each.device: adopt_process(each, self.run_dir) for each in self._fixed}
        found = running.pop("", None)
        self.helpers = {name: process for name, process in running.items() if process is not None}
        if found is None:
            raise VmmGoneError(f"{self.name}: the VMM has ended")
        await self.paging.adopt(left.processes)
        await self.vmm.adopt(found)
        await asyncio.to_thread(restore_rules, self.spec, [each.pid for each in left.processes], self.ruled)
        if self.decision.kind is VmmKind.QEMU:
            await settle_plugging(self, left)
            self.full = tuple(dict.fromkeys((*left.full, *await self.vmm.list_full_disks())))
        else:
            self.full = left.full
        if self.spec.design is Design.MICROKERNELIZED:
            await self._adopt_devices(left, console_log, capabilities)
        await settle_drive(self, capabilities)

    async def end(self) -> None:
        """End all processes and remove what they left."""
        async with AsyncExitStack() as stack:
            stack.callback(remove_rules, self.ruled)
            stack.callback(self.held.close)
            stack.push_async_callback(self.media.end)
            stack.push_async_callback(self.paging.end)
            for helper in self.helpers.values():
                # with the VMM gone their channel is closed and most have ended by themselves
                stack.push_async_callback(helper.stop, grace_s=1.0)
            for name, keeper in self._keepers.items():
                if name not in self.devices:  # its start failed
                    stack.push_async_callback(keeper.end)
            for device in self.devices.values():
                stack.push_async_callback(device.end)
            stack.push_async_callback(self.vmm.clean_up)

    async def let_go(self) -> None:
        """Leave everything as it is; nobody writes down what is left while others are let go of."""
        await asyncio.gather(self.media.let_go(), self.paging.let_go())
        await asyncio.gather(*(device.stop_watching() for device in self.devices.values()))
        await asyncio.gather(*(keeper.stop_watching() for keeper in self._keepers.values()))
        for device in self.devices.values():
            await device.detach()
        for keeper in (each for name, each in self._keepers.items() if name not in self.devices):
            await keeper.detach()
        await self.vmm.detach()
        for helper in self.helpers.values():
            helper.release()
        self.held.close()

    # Devices that are lost

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
            return PartitionError(f"{self.name}: {lost.plan.role} of {name}: {lost.reason}")
        helper = self.helpers[name]
        return PartitionError(f"{self.name}: {helper.role} of {name}: {helper.failure().message}")

    async def unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what the VMM would wait with for ever when a device is given up meanwhile.

        Raises ``PartitionError`` then.
        """
        doing = asyncio.create_task(work)
        lost = asyncio.create_task(self.wait_device_lost())
        try:
            await asyncio.wait({doing, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise lost.result()
            return await doing
        finally:
            for task in (doing, lost):
                task.cancel()
            await asyncio.gather(doing, lost, return_exceptions=True)

    # What a device's supervisor needs of the VM around it

    def connect(self, device: str) -> socket.socket:
        """A fresh connection to the device's channel. Raises ``PartitionError`` when nobody listens."""
        try:
            return connect_channel(self.vmm.socket_path(device))
        except OSError as error:
            raise PartitionError(f"channel {device} of {self.name} refuses: {error}") from error

    def record(self) -> None:
        """Write down which processes there are."""
        self._note()

    async def wait_ended(self, *, timeout_s: float) -> bool:
        """Whether the VMM has ended, or does within that time."""
        return await self.vmm.ends_within(timeout_s)

    async def pause(self) -> bool:
        """Stop the processors; False when they did not run."""
        try:
            await self.vmm.pause()
        except WrongStateError:
            return False
        return True

    async def note_full(self, device: str) -> bool:
        """A disk's driver finds no room on the host; False when there is enough."""
        return await self.on_full(device)

    async def set_link(self, nic: str, *, up: bool) -> None:
        """Plug a network card's cable in or out; a VMM that does not answer is left alone."""
        with contextlib.suppress(HypervisorError):
            await self.vmm.set_link(nic, up=up)

    async def resume(self) -> None:
        """Let the processors go on."""
        with contextlib.suppress(WrongStateError):
            await self.vmm.resume()

    # Starting

    def record_process(self, process: Process, device: str = "") -> None:
        """Note a process before its program begins."""
        self._fixed = (*self._fixed, describe_process(process, device))
        self._note()

    async def _start_devices(self, checked: CheckedStart, console_log: Path, old: Incarnation | None) -> None:
        if self.decision.kind is VmmKind.THIN:
            console = open_console(self.spec, self.run_dir, console_log, self.held)
            self.add_device(plan_console(self.spec, console))
        if self.spec.cdroms:
            self.media.start(self.spec, self._build_format_environment(checked.tools, checked.capabilities))
        await self._plan_disks(checked, old)
        for index, _ in self.spec.numbered_nics():
            if (tap := self.taps.get(nic_socket(index))) is not None:
                self.add_device(plan_nic(self.spec, index, {"tap": tap}))
        for index, device in enumerate(checked.devices):
            self.add_device(plan_device(self.spec, index, device, self.held))
        early = [each for name, each in self.devices.items() if name not in self.vmm.plan.bound]
        spare_after_s = self.spares_after_s if old is None else 0.0  # not in the pause of a guest that moves
        await asyncio.gather(*(each.start(spare_after_s=spare_after_s) for each in early))
        passt = checked.capabilities.tools.passt
        for index, nic in self.spec.numbered_nics():
            name = nic_socket(index)
            if name not in self.taps:
                self.helpers[name] = start_network_helper(
                    passt,
                    self.vmm.socket_path(name),
                    self.run_dir,
                    nic,
                    partial(self.record_process, device=name),
                )

    def _share_image(self, plan: DevicePlan) -> DevicePlan:
        """The plan of another incarnation's device for the same one of ours."""
        descriptors = {name: os.dup(descriptor) for name, descriptor in plan.descriptors.items()}
        for descriptor in descriptors.values():
            self.held.callback(os.close, descriptor)
        return replace(plan, descriptors=descriptors)

    async def _plan_disks(self, checked: CheckedStart, old: Incarnation | None) -> None:
        sizes = await old.read_disk_sizes() if old is not None else {}
        for at, (index, disk) in enumerate(self.spec.numbered_disks()):
            name = disk_socket(index)
            if disk.format is DiskFormat.RAW:
                if old is not None and name in old.devices:
                    self.add_device(self._share_image(old.devices[name].plan))
                else:
                    descriptors = checked.disks[at].descriptors
                    self.add_device(plan_disk(self.spec, index, descriptors, files=self.held))
                continue
            environment = self._build_format_environment(checked.tools, checked.capabilities)
            keeper = FormatKeeper(environment, name, disk, checked.chains[at], self.record)
            self._keepers[name] = keeper
            if old is None:
                await keeper.start()
            else:
                keeper.prepare(sizes[name])
            self.add_device(plan_disk(self.spec, index, keeper.descriptors, keeper.size_bytes), keeper)

    async def read_disk_sizes(self) -> dict[str, int]:
        """The size of each formatted disk in bytes, by its name."""
        if self.spec.design is Design.MONOLITHIC:
            return await self.vmm.read_disk_sizes()
        return {name: keeper.size_bytes for name, keeper in self._keepers.items()}

    @property
    def keepers(self) -> dict[str, FormatKeeper]:
        """Who looks after the format processes, by the disk's name."""
        return self._keepers

    async def wait_bound(self, names: Iterable[str]) -> None:
        """Wait until the VMM has bound these sockets of its own."""
        assert self.vmm.process is not None
        await wait_channels(map(self.vmm.socket_path, names), self.vmm.process)

    async def _start_late(self, names: Iterable[str]) -> None:
        """Start the drivers that the VMM waits for on sockets of its own."""
        await self.wait_bound(names)
        await asyncio.gather(*(self.devices[name].start() for name in names))

    def add_device(self, plan: DevicePlan, keeper: FormatKeeper | None = None) -> DeviceSupervisor:
        supervisor = DeviceSupervisor(plan, self, self._factories, self._tell, keeper)
        self.devices[plan.device] = supervisor
        return supervisor

    def _build_format_environment(
        self, tools: SandboxTools, capabilities: HostCapabilities
    ) -> FormatEnvironment:
        return build_format_environment(self.name, self.run_dir, tools, capabilities)

    # Adopting

    async def _adopt_devices(
        self, left: IncarnationDescription, console_log: Path, capabilities: Callable[[], HostCapabilities]
    ) -> None:
        """Take over the drivers; what no living driver holds is opened again, an image locked."""
        if self.decision.kind is VmmKind.THIN:
            found = left.find_partitions(CONSOLE_CHANNEL)
            pids = [each.pid for each in found]
            console = adopt_console(self.spec, self.run_dir, console_log, pids, self.held)
            await self._adopt_device(plan_console(self.spec, console), found)
        if self.spec.cdroms:
            adopt_media(self, left, await asyncio.to_thread(capabilities))
        for index, disk in self.spec.numbered_disks():
            found = left.find_partitions(disk_socket(index))
            if disk.format is not DiskFormat.RAW:
                await self._adopt_formatted(index, left, await asyncio.to_thread(capabilities))
                continue
            descriptors = adopt_disk(disk, [each.pid for each in found], self.held)
            await self._adopt_device(plan_disk(self.spec, index, descriptors, files=self.held), found)
        for index, nic in self.spec.numbered_nics():
            if nic.bridge is not None:
                found = left.find_partitions(nic_socket(index))
                tap = adopt_tap(self.spec, index, [each.pid for each in found], self.held)
                self.taps[nic_socket(index)] = tap
                await self._adopt_device(plan_nic(self.spec, index, {"tap": tap}), found)
        for index, device in enumerate(self.spec.devices):
            found = left.find_partitions(device_socket(index))
            opened = adopt_device(device, [each.pid for each in found], self.held)
            await self._adopt_device(plan_device(self.spec, index, opened, self.held), found)

    async def _adopt_formatted(
        self, index: int, left: IncarnationDescription, capabilities: HostCapabilities
    ) -> None:
        name, disk = disk_socket(index), self.spec.disk_at(index)
        found = left.find_partitions(name)
        tools = find_sandbox_tools(self.spec.design, capabilities)
        environment = self._build_format_environment(tools, capabilities)
        described = next(each for each in left.processes if each.device == name and is_format_process(each))
        pids = [each.pid for each in found]
        keeper = adopt_keeper(environment, name, disk, described, pids, self.record)
        self._keepers[name] = keeper
        plan = plan_disk(self.spec, index, keeper.descriptors, keeper.size_bytes)
        await self._adopt_device(plan, found, keeper)

    async def _adopt_device(
        self, plan: DevicePlan, found: list[ProcessDescription], keeper: FormatKeeper | None = None
    ) -> None:
        device = self.add_device(plan, keeper)
        await adopt_crew(device.crew, found, self)
        device.supervise()
