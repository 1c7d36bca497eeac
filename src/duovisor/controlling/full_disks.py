"""Disks of a running VM that find no room on the host: the VM stands still until there is.

Nothing is lost and the guest sees no error: what it wrote waits in its VMM (monolithic) or in flight at its
driver (microkernelized). The VM goes on by itself, with some room to spare, so that it does not stop again at
once.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from duovisor.controlling.plugging.changes import slot_of
from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind
from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.lifecycle import ENDED, State
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine
    from duovisor.controlling.supervision.records import Tell
    from duovisor.spec.vm import DiskSpec

MIB = 1 << 20
ENOUGH_BYTES, ENOUGH_SHARE = 256 * MIB, 0.05
LOOK_S, LOOK_MAX_S = 1.0, 60.0
SOON_S = 30.0  # who is full again so soon after it went on is asked less often
STOPS_S = 10.0


class FullDisks:
    """Holds ``machine`` while some of its disks find no room; which ones is in its description."""

    def __init__(self, machine: Machine, tell: Tell) -> None:
        self._machine = machine
        self._tell = tell
        self._look_s = LOOK_S
        self._went_on_at = 0.0
        self._met_again: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def note(self, device: str) -> bool:
        """A disk finds no room: pause the VM, and watch. One that its user paused is left alone.

        False when a format process refused something and there is room: it does not say why.
        """
        current = self._machine.current
        inside = current.spec.design is Design.MONOLITHIC
        if device in current.full or current.vmm.state in ENDED:
            if inside:
                self._met_again.add(device)  # if it is just going on, it stands still again
            return True
        if device in current.keepers:
            disk = current.spec.disk_at(slot_of(device))
            if await asyncio.to_thread(has_room, disk):
                return False
        if not inside and not current.full and current.vmm.state is not State.RUNNING:
            return True  # what waits is done again when the VM is told to go on
        current.full = (*current.full, device)
        self._machine.write()  # before it stands still, so that a successor knows why
        if inside:  # QEMU has stopped it
            with suppress(TimeoutError):
                await current.vmm.lifecycle.wait_for({State.PAUSED}, timeout_s=STOPS_S)
        else:
            await current.pause()
        soon = time.monotonic() - self._went_on_at < SOON_S
        self._look_s = min(2 * self._look_s, LOOK_MAX_S) if soon else LOOK_S
        self._tell(DriverEvent(DriverEventKind.FULL, device, self._describe(device)))
        self.watch()
        return True

    def watch(self) -> None:
        """Look for room from now on, if some disk waits for it."""
        if self._machine.current.full and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._watch(), name=f"room for {self._machine.name}")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        machine = self._machine
        while machine.current.full:
            await asyncio.sleep(self._look_s)
            state = machine.vmm.state
            if state in ENDED:
                return
            if state is State.RUNNING or await asyncio.to_thread(self._has_room):
                with suppress(HypervisorError):
                    await self._go_on()

    def _has_room(self) -> bool:
        return all(has_room(disk) for disk in self._find_disks())

    def _find_disks(self) -> list[DiskSpec]:
        current = self._machine.current
        return [disk for slot, disk in current.spec.numbered_disks() if disk_socket(slot) in current.full]

    async def _go_on(self) -> None:
        """Let the VM run, also when its user did so before; only then forget why it did not."""
        current = self._machine.current
        was_running = current.vmm.state is State.RUNNING
        self._met_again.clear()
        if not was_running:
            await current.vmm.resume()
        # of a block device only trying tells: QEMU may have met it again before it said that it goes on (a
        # driver is told to try below)
        full = [device for device in current.full if device not in self._met_again]
        current.full = tuple(device for device in current.full if device in self._met_again)
        self._machine.write()
        self._went_on_at = time.monotonic()
        if current.full:
            self._look_s = min(2 * self._look_s, LOOK_MAX_S)
            with suppress(TimeoutError):
                await current.vmm.lifecycle.wait_for({State.PAUSED}, timeout_s=STOPS_S)
        for device in full:
            if device in current.devices:
                await current.devices[device].retry()
            if not was_running:
                said = "there is room again; the VM goes on"
                self._tell(DriverEvent(DriverEventKind.ROOM, device, said))

    def _describe(self, device: str) -> str:
        disk = self._machine.current.spec.disk_at(slot_of(device))
        where, wanted = os.path.dirname(disk.path), find_wanted_bytes(disk)
        until = f"{max(1, wanted // MIB)} MiB are free there" if wanted is not None else "there is"
        return f"no room is left in {where} for what the guest writes; the VM is paused until {until}"


def find_wanted_bytes(disk: DiskSpec) -> int | None:
    """How much must be free where a disk's image is before its VM goes on; ``None`` for a block device."""
    try:
        if stat.S_ISBLK(os.stat(disk.path).st_mode):
            return None
        folder = os.statvfs(os.path.dirname(disk.path))
    except OSError:
        return None
    return min(ENOUGH_BYTES, int(folder.f_blocks * folder.f_frsize * ENOUGH_SHARE))


def has_room(disk: DiskSpec) -> bool:
    """Whether a VM may try again; of a block device only trying tells."""
    wanted = find_wanted_bytes(disk)
    if wanted is None:
        return True
    folder = os.statvfs(os.path.dirname(disk.path))
    return folder.f_bavail * folder.f_frsize >= wanted
