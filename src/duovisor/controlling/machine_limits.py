"""The limits of a running VM's disks and cards: set in its drivers, in its VMM, or on the host."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.machine_devices import rate_of_card
from duovisor.controlling.machine_disks import rate_of
from duovisor.controlling.machine_networks import change_rules
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
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


async def limit_card(incarnation: Incarnation, index: int) -> None:
    """Limit card ``index`` to what the specification says.

    Raises ``PartitionError``, ``NetworkError`` or ``HostLacksError``; it is as it was then.
    """
    name = nic_socket(index)
    if name in incarnation.devices:
        await incarnation.devices[name].set_rate(rate_of_card(incarnation.spec.nic_at(index)))
        return
    pids = [each.pid for each in incarnation.describe().processes if each.is_vmm]
    await asyncio.to_thread(change_rules, incarnation.spec, index, pids, incarnation.ruled)


async def limit_disks_inside(incarnation: Incarnation) -> None:
    """Set the limits of disks whose drivers are in the VMM, which begins without any. Raises as above."""
    if incarnation.spec.design is Design.MONOLITHIC:
        for slot, disk in incarnation.spec.numbered_disks():
            if any(rate_of(disk)):
                await limit_disk(incarnation, disk_socket(slot), rate_of(disk))
