"""What is done inside a VM: its guest is asked, its console and screen shown, its drives changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.firmware_files import remove_variables
from duovisor.controlling.vms import media
from duovisor.controlling.vms.actions import VmActions, not_running
from duovisor.controlling.vms.errors import GraphicsMissingError
from duovisor.controlling.vms.guests import Guests
from duovisor.controlling.vms.records import EventKind, ignore_progress

if TYPE_CHECKING:
    import socket

    from duovisor.controlling.agent.answers import GuestInfo
    from duovisor.controlling.console import Console
    from duovisor.controlling.vms.actions import Given
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.records import Progress
    from duovisor.spec.cdrom import CdromSpec


class InsideActions(VmActions):
    """A part of the manager."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self._guests = Guests(self._tell)

    async def read_guest(self, name: str) -> GuestInfo:
        """What a VM's guest tells of itself. Raises ``AgentError`` where nobody answers in it."""
        return await self._guests.read_info(await self._require_active(name, "ask the guest of"))

    async def freeze(self, name: str, for_s: float, progress: Progress = ignore_progress) -> None:
        """Freeze the guest's file systems, for at most so many seconds. Raises ``AgentError``."""
        with self._exclusive(name, "freeze the file systems of"):
            count = await self._guests.freeze(await self._require_active(name, "freeze"), for_s)
        progress(100, f"{count} file systems are frozen")

    async def thaw(self, name: str, progress: Progress = ignore_progress) -> None:
        """Thaw the guest's file systems. Raises ``AgentError``."""
        with self._exclusive(name, "thaw the file systems of"):
            count = await self._guests.thaw(await self._require_active(name, "thaw"))
        progress(100, f"{count} file systems are thawed")

    async def change_medium(
        self,
        name: str,
        drive: int,
        cdrom: CdromSpec,
        progress: Progress = ignore_progress,
        *,
        force: bool = False,
    ) -> None:
        """Change what is in a CD-ROM drive: now if the VM runs, and in its definition.

        Raises ``DeviceNotFoundError``, ``DiskFileError`` or ``TrayLockedError``, with everything as it was.
        """
        with self._exclusive(name, "change a CD-ROM of"):
            seen = await self._definitions.get(name)
            changes = media.MediaChanges(self._definitions, self._host, self._lend)
            await changes.change(seen, drive, cdrom, self._capabilities, force=force)
        self._tell(EventKind.MEDIUM_CHANGED, name, seen.uuid, media.describe_medium(drive, cdrom))
        progress(100, media.describe_medium(drive, cdrom))

    async def reset_nvram(self, name: str) -> None:
        """Forget the UEFI variables of a VM that does not run; its next start begins with fresh ones."""
        with self._exclusive(name, "reset the NVRAM of"):
            record = await self._definitions.get(name)
            self._require_resting(record, "reset the NVRAM of")
            await asyncio.to_thread(remove_variables, self._host.lasting(record.uuid))
        self._tell(EventKind.NVRAM_RESET, name, record.uuid)

    def console(self, name: str) -> Console:
        """A running VM's serial console, for any number of viewers. Raises ``WrongStateError``."""
        vm = self._host.find_by_name(name)
        if vm is None:
            raise not_running(name, "attach to the console of")
        return vm.machine.console

    async def require_screen(self, name: str) -> None:
        """Raises ``GraphicsMissingError`` unless the VM runs and has a screen."""
        await self._require_screen(name)

    async def open_screen(self, name: str) -> socket.socket:
        """A connection to a running VM's screen (VNC), which the caller closes.

        Raises ``GraphicsMissingError``.
        """
        return await (await self._require_screen(name)).machine.vmm.open_screen()

    async def take_screenshot(self, name: str) -> bytes:
        """What a running VM's screen shows, as PNG. Raises ``GraphicsMissingError``."""
        return await (await self._require_screen(name)).machine.vmm.take_picture()

    async def _require_screen(self, name: str) -> ActiveVm:
        vm = await self._require_active(name, "look at the screen of")
        if not vm.machine.spec.graphics:
            raise GraphicsMissingError(
                f"{name} has no screen", remedy=f"duovisor vm edit {name} --set graphics=true, and restart it"
            )
        return vm
