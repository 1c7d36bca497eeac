"""One running VM under the manager: watched until it ends, then taken off the host."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from duovisor.controlling.media.drives import is_media_server
from duovisor.controlling.snapshots.paging import DEVICE as MEMORY
from duovisor.controlling.vms.errors import DeviceNotFoundError
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.controlling.incarnation import Incarnation
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.hypervisor.lifecycle import State
    from duovisor.process import Process

    OnFault = Callable[["ActiveVm", str], Awaitable[None]]
    OnEnd = Callable[["ActiveVm", State], Awaitable[None]]

# a helper that ends this long before its VMM ended because the VMM did
ENDING_TOGETHER_S = 1.0


class ActiveVm:
    """A VM with a machine; ``on_end`` is told when it has ended and nothing of it is left."""

    def __init__(self, uuid: str, machine: Machine, on_fault: OnFault, on_end: OnEnd) -> None:
        self.uuid = uuid
        self.name = machine.spec.name
        self.machine = machine
        self._on_fault = on_fault
        self._on_end = on_end
        self._gone = asyncio.Event()
        self._ended_by = ""
        self._cleaning = False
        self._watched: list[Process] = []
        self._watches: list[asyncio.Task[None]] = []
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def wait_gone(self, *, timeout_s: float | None = None) -> None:
        """Wait until the VM has ended and nothing of it is left. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            await self._gone.wait()

    def describe_crash(self) -> str:
        """How the VMM ended, with its last words, which were read before the run folder was removed."""
        return self._ended_by

    def find_device(self, name: str) -> DeviceSupervisor:
        """A device whose drivers are supervised. Raises ``DeviceNotFoundError``."""
        devices = self.machine.devices
        if name not in devices:
            known = ", ".join(devices) or "none: drivers in the VMM cannot be replaced"
            raise DeviceNotFoundError(
                f"{self.name} has no driver partition {name!r}", remedy=f"it has {known}"
            )
        return devices[name]

    async def revive_devices(self) -> bool:
        """Try again the devices that were given up; whether there were any. Raises ``PartitionError``."""
        failed = [device for device in self.machine.devices.values() if device.failed.is_set()]
        for device in failed:
            await device.replace(latest=False)
        return bool(failed)

    def watch_helpers(self) -> None:
        """Watch the helpers of the VMM that the VM has now; those of one that it had end with that.

        To be called again when a device with a helper was plugged in.
        """
        current = self.machine.current
        self._watches = [watch for watch in self._watches if not watch.done()]
        fresh = [name for name, helper in current.helpers.items() if helper not in self._watched]
        self._watched = list(current.helpers.values())
        self._watches += [asyncio.create_task(self._watch_helper(current, name)) for name in fresh]

    async def detach(self) -> None:
        """Let go of the VM, which runs on; one that is just ending is taken off the host first."""
        if not self._cleaning:
            self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if not self._cleaning:
            await self.machine.detach()

    async def _watch(self) -> None:
        await self._report_lost()
        self.watch_helpers()
        try:
            state = await self.machine.wait_ended()
        finally:
            for watch in self._watches:
                watch.cancel()
            await asyncio.gather(*self._watches, return_exceptions=True)
        self._cleaning = True
        if self.machine.vmm.process is not None:
            self._ended_by = self.machine.vmm.process.failure().message
        try:
            await self.machine.clean_up()
        except (OSError, DuovisorError) as error:
            await self._on_fault(self, f"something of it stays on the host: {error}")
        try:
            await self._on_end(self, state)
        finally:
            self._gone.set()

    async def _report_lost(self) -> None:
        """An adopted VM may lack a helper from the start; drivers and others of theirs are replaced."""
        known = {"", MEMORY, *self.machine.helpers, *self.machine.devices}
        for process in self.machine.description.processes:
            if process.device not in known and not is_media_server(process):
                await self._on_fault(self, f"the {process.role} of {process.device} ended unobserved")

    async def _watch_helper(self, incarnation: Incarnation, name: str) -> None:
        helper = incarnation.helpers[name]
        await helper.wait()
        if incarnation.helpers.get(name) is not helper:
            return  # its device was plugged out
        with contextlib.suppress(TimeoutError):
            await incarnation.vmm.wait_ended(timeout_s=ENDING_TOGETHER_S)
            return
        await self._on_fault(self, str(incarnation.describe_loss(name)))
