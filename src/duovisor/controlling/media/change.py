"""Changes what is in a CD-ROM drive of a VM that runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from duovisor.controlling.machine_formats import build_format_environment
from duovisor.controlling.plugging.plug import to_its_end
from duovisor.controlling.preflight import find_sandbox_tools
from duovisor.errors import DuovisorError
from duovisor.hypervisor.qemu.cdroms import build_medium, cdrom_name, medium_node
from duovisor.spec.cdrom import CdromSpec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.description import IncarnationDescription
    from duovisor.controlling.formats.process import FormatEnvironment
    from duovisor.controlling.incarnation import Incarnation
    from duovisor.hardware.capabilities import HostCapabilities


async def change_medium(
    incarnation: Incarnation, index: int, cdrom: CdromSpec, capabilities: HostCapabilities, *, force: bool
) -> None:
    """Take out what is in a drive, and put in what ``cdrom`` says.

    Raises ``TrayLockedError`` with everything as it was; ``QmpError`` or ``ControllingError`` with an empty
    drive. Once begun it goes to its end, though cancelled.
    """
    await to_its_end(_change(incarnation, index, cdrom, capabilities, force=force))


def adopt_media(
    incarnation: Incarnation, left: IncarnationDescription, capabilities: HostCapabilities
) -> None:
    """Take over the media servers that a previous owner left."""
    environment = _build_environment(incarnation, capabilities)
    incarnation.media.adopt(incarnation.spec, left.processes, environment, incarnation.run_dir)


async def settle_drive(incarnation: Incarnation, capabilities: Callable[[], HostCapabilities]) -> None:
    """Finish, or undo, the change that a previous owner was making: the drive gets what is described.

    It is empty, and described so, if that fails: the VM is worth more.
    """
    index = incarnation.changing_drive
    if index is None:
        return
    found = await asyncio.to_thread(capabilities)
    with suppress(DuovisorError):
        await incarnation.vmm.eject_medium(cdrom_name(index), medium_node(index), force=True)
        await incarnation.media.eject(index)
        await _put_in(incarnation, index, incarnation.spec.cdroms[index], found)
    _describe(incarnation, index, incarnation.spec.cdroms[index], changing=False)


async def _change(
    incarnation: Incarnation, index: int, cdrom: CdromSpec, capabilities: HostCapabilities, *, force: bool
) -> None:
    _describe(incarnation, index, incarnation.spec.cdroms[index], changing=True)
    try:
        await incarnation.vmm.eject_medium(cdrom_name(index), medium_node(index), force=force)
        await incarnation.media.eject(index)
        _describe(incarnation, index, cdrom, changing=True)
        await _put_in(incarnation, index, cdrom, capabilities)
    finally:
        _describe(incarnation, index, incarnation.spec.cdroms[index], changing=False)


async def _put_in(
    incarnation: Incarnation, index: int, cdrom: CdromSpec, capabilities: HostCapabilities
) -> None:
    """Put what is described into an empty drive; if that fails, it is described as empty."""
    if cdrom.is_empty:
        return
    design = incarnation.spec.design
    try:
        if design is Design.MICROKERNELIZED:
            incarnation.media.insert(index, cdrom.path, _build_environment(incarnation, capabilities))
        await incarnation.vmm.insert_medium(cdrom_name(index), build_medium(design, index, cdrom.path))
    except BaseException:
        await incarnation.media.eject(index)
        _describe(incarnation, index, CdromSpec(), changing=True)
        raise


def _build_environment(incarnation: Incarnation, capabilities: HostCapabilities) -> FormatEnvironment:
    tools = find_sandbox_tools(incarnation.spec.design, capabilities)
    return build_format_environment(incarnation.name, incarnation.run_dir, tools, capabilities)


def _describe(incarnation: Incarnation, index: int, cdrom: CdromSpec, *, changing: bool) -> None:
    cdroms = list(incarnation.spec.cdroms)
    cdroms[index] = cdrom
    incarnation.spec = incarnation.spec.model_copy(update={"cdroms": tuple(cdroms)})
    incarnation.changing_drive = index if changing else None
    incarnation.record()
