"""Changing what is in a VM's CD-ROM drive: now if it runs, and in its definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.media.change import change_medium
from duovisor.controlling.media.server import check_medium
from duovisor.controlling.vms.errors import DeviceNotFoundError

if TYPE_CHECKING:
    from duovisor.controlling.vms.active import ActiveVm
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
    put_in(vm.machine.spec, drive, cdrom)
    async with vm.machine.moving, lend(_alone(vm.machine.spec, cdrom)) as found:
        if not cdrom.is_empty:
            check_medium(found.cdroms[0].path)
        await change_medium(vm.machine.current, drive, found.cdroms[0], capabilities, force=force)


def describe_medium(drive: int, cdrom: CdromSpec) -> str:
    """What is in a drive, for the log of events."""
    return f"cdrom{drive}: {cdrom.volume or cdrom.path or 'empty'}"


def _alone(spec: VirtualMachineSpec, cdrom: CdromSpec) -> VirtualMachineSpec:
    """A VM of that name with nothing to be found but a medium."""
    return spec.model_copy(update={"disks": (), "nics": (), "cdroms": (cdrom,), "kernel": None})
