"""What the manager does to the devices of its VMs: attaching, detaching, limiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.vms.actions import VmActions
from duovisor.controlling.vms.limits import Limits
from duovisor.controlling.vms.plugging import UNPLUG_TIMEOUT_S, Plugging
from duovisor.controlling.vms.records import ignore_progress

if TYPE_CHECKING:
    from duovisor.controlling.vms.actions import Given
    from duovisor.controlling.vms.records import Progress, VmView
    from duovisor.spec.vm import DiskSpec, NicSpec


class DeviceActions(VmActions):
    """A part of the manager."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self._limits = Limits(self._definitions, self._host, self._tell)
        self._plugging = Plugging(self._definitions, self._host, given.lend, self._tell)

    async def attach(
        self, name: str, device: DiskSpec | NicSpec, progress: Progress = ignore_progress
    ) -> None:
        """Give a VM a disk or network card: under its guest if it runs, and in its definition.

        Raises ``PlugRefusedError``, ``WrongStateError`` or what a start may raise; nothing has changed then.
        """
        with self._exclusive(name, "plug a device into"):
            record = await self._definitions.get(name)
            await self._plugging.attach(record, device, self._capabilities, progress)

    async def detach(
        self,
        name: str,
        device: str,
        timeout_s: float = UNPLUG_TIMEOUT_S,
        progress: Progress = ignore_progress,
    ) -> None:
        """Take a disk or network card from a VM, if it runs with its guest's consent.

        Raises ``DeviceNotFoundError``, ``WrongStateError``, ``UnplugTimeoutError`` or ``UnplugRefusedError``;
        the VM has it then.
        """
        with self._exclusive(name, "take a device out of"):
            record = await self._definitions.get(name)
            await self._plugging.detach(record, device, timeout_s, progress)

    async def limit_disk(
        self, name: str, disk: str, iops_limit: int | None, bandwidth_limit: int | None
    ) -> VmView:
        """How many requests and bytes a second a disk does at most, from now on.

        Raises ``DeviceNotFoundError``, or what its driver or VMM says; it is as it was then.
        """
        with self._exclusive(name, "limit a disk of"):
            record = await self._definitions.get(name)
            await self._limits.set_disk(record, disk, iops_limit, bandwidth_limit)
        return self._view(await self._definitions.get(name))

    async def limit_nic(self, name: str, nic: str, in_limit: int | None, out_limit: int | None) -> VmView:
        """How many bytes a second a guest gets and sends through a network card at most, from now on.

        Raises ``DeviceNotFoundError``, ``VmChangeError`` for a card that is on no bridge, or what its driver
        or the packet filter says; it is as it was then.
        """
        with self._exclusive(name, "limit a network card of"):
            record = await self._definitions.get(name)
            await self._limits.set_card(record, nic, in_limit, out_limit)
        return self._view(await self._definitions.get(name))
