"""What the manager does to give a VM a disk or a network card, or to take one away.

Under a running guest, and in the definition: it is what the next start begins with. A VM that does not run
has it at its next start.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.description import DeviceChange
from duovisor.controlling.plugging.changes import name_devices, place_disk, place_nic
from duovisor.controlling.plugging.plug import check_plugging, plug_in, take_out
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.errors import DeviceNotFoundError
from duovisor.controlling.vms.records import EventKind
from duovisor.controlling.vms.volumes import check_places
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.spec.vm import DiskSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.records import Progress, VmRecord
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import NicSpec

    Emit = Callable[[EventKind, str, str, str], None]

UNPLUG_TIMEOUT_S = 30.0


class Plugging:
    """Plugs devices into VMs on which nobody else acts meanwhile; arguments as ``Moves`` has them."""

    def __init__(self, definitions: Definitions, host: HostVms, lend: Lend, tell: Emit) -> None:
        self._definitions = definitions
        self._host = host
        self._lend = lend
        self._tell = tell

    async def attach(
        self,
        record: VmRecord,
        device: DiskSpec | NicSpec,
        capabilities: Callable[[], HostCapabilities],
        progress: Progress,
    ) -> None:
        """Give a VM a device. Raises ``PlugRefusedError`` or what a start may raise; it is as it was then."""
        vm = self._host.find(record.uuid)
        specs = (record.spec, vm.machine.spec) if vm is not None else (record.spec,)
        if isinstance(device, DiskSpec):
            device = place_disk(device, specs)
            check_places(record.spec.model_copy(update={"disks": (device,)}))
            change = DeviceChange(device=disk_socket(device.slot or 0), disk=device)
        else:
            device = place_nic(device, specs)
            check_places(record.spec.model_copy(update={"nics": (device,)}))
            change = DeviceChange(device=nic_socket(device.slot or 0), nic=device)
        if vm is None:
            await self._definitions.change_device(record.name, change)
        else:
            check_plugging(vm.machine, "plug a device into")
            progress(10, "plugging it in")
            found = await asyncio.to_thread(capabilities)
            await self._change(vm, record, change, lambda: self._plug_in(vm, device, found))
            vm.watch_helpers()
        said = f"{change.device} attached" if vm is not None else f"{change.device} at its next start"
        self._tell(EventKind.DEVICE_ATTACHED, record.name, record.uuid, said)
        progress(100, said)

    async def detach(self, record: VmRecord, device: str, timeout_s: float, progress: Progress) -> None:
        """Take a device from a VM. Raises ``DeviceNotFoundError``, and as ``take_out``; it is there then."""
        vm = self._host.find(record.uuid)
        running = name_devices(vm.machine.spec) if vm is not None else {}
        known = name_devices(record.spec)
        if device not in known and device not in running:
            have = ", ".join(sorted({*known, *running})) or "none"
            raise DeviceNotFoundError(
                f"{record.name} has no disk or network card {device!r}", remedy=f"it has {have}"
            )
        change = DeviceChange(device=device)
        if vm is None or device not in running:
            await self._definitions.change_device(record.name, change)
        else:
            progress(10, "asking the guest to let go of it")
            await self._change(vm, record, change, lambda: take_out(vm.machine, device, timeout_s=timeout_s))
        said = f"{device} detached"
        self._tell(EventKind.DEVICE_DETACHED, record.name, record.uuid, said)
        progress(100, said)

    async def _plug_in(
        self, vm: ActiveVm, device: DiskSpec | NicSpec, capabilities: HostCapabilities
    ) -> None:
        is_disk = isinstance(device, DiskSpec)
        devices = {"disks": (device,) if is_disk else (), "nics": () if is_disk else (device,)}
        async with self._lend(vm.machine.spec.model_copy(update=devices)) as lent:
            await plug_in(vm.machine, lent.disks[0] if is_disk else lent.nics[0], capabilities)

    async def _change(
        self, vm: ActiveVm, record: VmRecord, change: DeviceChange, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do it, announced before; the definition follows what came of it, however the call for it ended.

        ``work`` begins only then; if it was cancelled while it was announced, the announcement is taken back.
        """
        comes = bool(change.disk or change.nic)
        try:
            await self._host.announce_change(vm, change)
            await work()
        finally:
            await asyncio.shield(self._settle(vm, record, change, comes=comes))

    async def _settle(self, vm: ActiveVm, record: VmRecord, change: DeviceChange, *, comes: bool) -> None:
        if (change.device in name_devices(vm.machine.spec)) is comes:
            await self._definitions.change_device(record.name, change)
        if self._host.find(vm.uuid) is vm:
            await self._host.announce(vm, Intent.NONE)
