"""A booted guest that is measured, with the machine around it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.comparison.processes import FACTORY, VmProcess, list_processes
from duovisor.comparison.shell import Shell
from duovisor.controlling.images.errors import GuestGoneError
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.hypervisor.lifecycle import ENDED
from duovisor.process import describe_exit

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine
    from duovisor.spec.vm import Design

SIGNALLED = 128  # bubblewrap ends with this and the signal's number
WORDS_MAX = 300


class Guest(Shell):
    """A VM whose guest is up. ``start_s``: until its VMM ran it, ``boot_s``: until the guest said so."""

    def __init__(self, machine: Machine, factory_pid: int, address: str, *, start_s: float) -> None:
        super().__init__(lambda: machine.port_path(PORT_NAME))
        self.machine = machine
        self.address = address
        self.start_s = start_s
        self.boot_s = 0.0
        self.has_network = False
        self._factory_pid = factory_pid

    @property
    def design(self) -> Design:
        return self.machine.spec.design

    @property
    def has_ended(self) -> bool:
        return self.machine.vmm.state in ENDED

    def list_processes(self) -> list[VmProcess]:
        """Its processes, with the factory that its drivers were made by if it has drivers."""
        found = list_processes(self.machine.description)
        if self.machine.devices:
            found.append(VmProcess(FACTORY, self._factory_pid))
        return found

    async def finish(self, timeout_s: float) -> tuple[int, str]:
        """As ``Shell.finish``; raises ``GuestGoneError`` at once when the VM ends instead."""
        asking = asyncio.create_task(super().finish(timeout_s))
        ending = asyncio.create_task(self.machine.wait_ended())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise GuestGoneError(f"the guest is gone: its VMM {self.describe_end()}")
            return asking.result()
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)

    def describe_end(self) -> str:
        """How its VMM ended, or that it did not."""
        process = self.machine.vmm.process
        if not self.has_ended or process is None:
            return "runs, but the guest does not answer"
        code = process.returncode
        if process.sandboxed and code is not None and code > SIGNALLED:
            code = SIGNALLED - code
        words = process.last_words()[-WORDS_MAX:] if code is not None and code >= 0 else ""
        return f"{describe_exit(code)}{f': {words}' if words else ''}"
