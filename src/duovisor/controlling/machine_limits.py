"""The limits of a running VM's disks: set in its drivers, or in its VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.machine_disks import rate_of
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.incarnation import Incarnation


async def limit_disk(incarnation: Incarnation, disk: str, rate: tuple[int, int]) -> None:
    """Let through so many requests and bytes a second; 0 is no limit.

    Raises ``PartitionError``, ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``.
    """
    if disk in incarnation.devices:
        await incarnation.devices[disk].set_rate(rate)
    else:
        await incarnation.vmm.limit_disk(disk, iops=rate[0], bytes_per_s=rate[1])


async def limit_disks_inside(incarnation: Incarnation) -> None:
    """Set the limits of disks whose drivers are in the VMM, which begins without any. Raises as above."""
    if incarnation.spec.design is Design.MONOLITHIC:
        for slot, disk in incarnation.spec.numbered_disks():
            if any(rate_of(disk)):
                await limit_disk(incarnation, disk_socket(slot), rate_of(disk))
