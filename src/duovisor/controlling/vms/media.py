"""Changing what is in a VM's CD-ROM drive: now if it runs, and in its definition."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from duovisor.controlling.description import DeviceChange
from duovisor.controlling.media.change import change_medium
from duovisor.controlling.media.server import check_medium
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.errors import DeviceNotFoundError, RevisionConflictError
from duovisor.hypervisor.qemu.cdroms import cdrom_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.records import VmRecord
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.cdrom import CdromSpec
    from duovisor.spec.vm import VirtualMachineSpec


def put_in(spec: VirtualMachineSpec, drive: int, cdrom: CdromSpec) -> VirtualMachineSpec:
    """The specification with something else in a drive. Raises ``DeviceNotFoundError``."""
    if drive >= len(spec.cdroms):
        count = len(spec.cdroms)
        known = f"it has cdrom0 to cdrom{count - 1}" if count > 1 else "it has cdrom0" if count else ""
        raise DeviceNotFoundError(
            f"{spec.name} has no CD-ROM drive cdrom{drive}",
            remedy=known
            or f"duovisor vm edit {spec.name} --set 'cdroms=[{{}}]' gives it one at its next start",
        )
    return spec.model_copy(update={"cdroms": (*spec.cdroms[:drive], cdrom, *spec.cdroms[drive + 1 :])})


async def find_medium(spec: VirtualMachineSpec, cdrom: CdromSpec, lend: Lend) -> None:
    """Check that a medium is there, for a VM that does not run. Raises ``DiskFileError`` or as ``lend``."""
    async with lend(_alone(spec, cdrom)) as found:
        if not cdrom.is_empty:
            check_medium(found.cdroms[0].path)


async def change_now(
    vm: ActiveVm, drive: int, cdrom: CdromSpec, lend: Lend, capabilities: HostCapabilities, *, force: bool
) -> None:
    """Change what is in a running VM's drive.

    Raises ``DeviceNotFoundError``, ``DiskFileError``, ``TrayLockedError`` or as ``lend``, with everything as
    it was; ``QmpError`` or ``PartitionError`` with an empty drive.
    """
    async with vm.machine.moving, lend(_alone(vm.machine.spec, cdrom)) as found:
        if not cdrom.is_empty:
            check_medium(found.cdroms[0].path)
        await change_medium(vm.machine.current, drive, found.cdroms[0], capabilities, force=force)


async def note_medium(definitions: Definitions, name: str, drive: int, cdrom: CdromSpec) -> None:
    """Have it in the definition, whoever changes something else meanwhile.

    Raises ``VmNotFoundError``, ``DeviceNotFoundError``.
    """
    while True:
        seen = await definitions.get(name)
        spec = put_in(seen.spec, drive, cdrom)
        if spec == seen.spec:
            return
        with suppress(RevisionConflictError):
            await definitions.update(seen, spec, seen.autostart, None)
            return


def has_medium(spec: VirtualMachineSpec, drive: int, cdrom: CdromSpec) -> bool:
    """Whether that is in a drive of a running VM, which knows the path of a volume; pure."""
    return drive < len(spec.cdroms) and spec.without_places().cdroms[drive] == cdrom


class MediaChanges:
    """Changes media of VMs on which nobody else acts meanwhile."""

    def __init__(self, definitions: Definitions, host: HostVms, lend: Lend) -> None:
        self._definitions = definitions
        self._host = host
        self._lend = lend

    async def change(
        self,
        record: VmRecord,
        drive: int,
        cdrom: CdromSpec,
        capabilities: Callable[[], HostCapabilities],
        *,
        force: bool,
    ) -> None:
        """Now if the VM runs, and in its definition. Raises as ``find_medium`` or ``change_now``."""
        spec = put_in(record.spec, drive, cdrom)
        vm = self._host.find(record.uuid)
        if vm is None:
            await find_medium(spec, cdrom, self._lend)
            await note_medium(self._definitions, record.name, drive, cdrom)
            return
        put_in(vm.machine.spec, drive, cdrom)
        found = await asyncio.to_thread(capabilities)
        try:
            await self._host.announce_change(vm, DeviceChange(device=cdrom_name(drive), cdrom=cdrom))
            await change_now(vm, drive, cdrom, self._lend, found, force=force)
        finally:
            await asyncio.shield(self._settle(vm, record.name, drive, cdrom))

    async def _settle(self, vm: ActiveVm, name: str, drive: int, cdrom: CdromSpec) -> None:
        if has_medium(vm.machine.spec, drive, cdrom):
            await note_medium(self._definitions, name, drive, cdrom)
        if self._host.find(vm.uuid) is vm:
            await self._host.announce(vm, Intent.NONE)


def describe_medium(drive: int, cdrom: CdromSpec) -> str:
    """What is in a drive, for the log of events."""
    return f"cdrom{drive}: {cdrom.volume or cdrom.path or 'empty'}"


def _alone(spec: VirtualMachineSpec, cdrom: CdromSpec) -> VirtualMachineSpec:
    """A VM of that name with nothing to be found but a medium."""
    return spec.model_copy(update={"disks": (), "nics": (), "cdroms": (cdrom,), "kernel": None})
