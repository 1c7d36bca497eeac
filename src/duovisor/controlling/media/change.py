"""Changes what is in a CD-ROM drive of a VM that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.machine_formats import build_format_environment
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.hypervisor.qemu.cdroms import build_medium, cdrom_name, medium_node
from duovisor.spec.cdrom import CdromSpec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.incarnation import Incarnation
    from duovisor.hardware.capabilities import HostCapabilities


async def change_medium(
    incarnation: Incarnation, index: int, cdrom: CdromSpec, capabilities: HostCapabilities, *, force: bool
) -> None:
    """Take out what is in a drive, and put in what ``cdrom`` says.

    Raises ``TrayLockedError`` with everything as it was; ``QmpError`` or ``ControllingError`` with an empty
    drive. Whoever comes after a kill finds the drive as its incarnation describes it.
    """
    drive, design = cdrom_name(index), incarnation.spec.design
    await incarnation.vmm.eject_medium(drive, medium_node(index), force=force)
    await incarnation.media.eject(index)
    _describe(incarnation, index, CdromSpec())
    if cdrom.is_empty:
        return
    try:
        if design is Design.MICROKERNELIZED:
            tools = find_sandbox_tools(design, capabilities)
            environment = build_format_environment(incarnation.name, incarnation.run_dir, tools, capabilities)
            incarnation.media.insert(index, cdrom.path, environment)
        await incarnation.vmm.insert_medium(drive, build_medium(design, index, cdrom.path))
    except BaseException:
        await incarnation.media.eject(index)
        raise
    _describe(incarnation, index, cdrom)


def _describe(incarnation: Incarnation, index: int, cdrom: CdromSpec) -> None:
    cdroms = list(incarnation.spec.cdroms)
    cdroms[index] = cdrom
    incarnation.spec = incarnation.spec.model_copy(update={"cdroms": tuple(cdroms)})
    incarnation.record()
