"""What the manager does to give a VM more memory: in its definition, and under its guest, which is asked."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from duovisor.controlling.plugging.memory import add_memory, check_growth, look_at_memory
from duovisor.controlling.vms.inside import InsideActions
from duovisor.controlling.vms.records import EventKind
from duovisor.controlling.vms.resource_actions import ResourceActions, change_spec
from duovisor.hypervisor.errors import HypervisorError

if TYPE_CHECKING:
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.records import VmRecord, VmView

ANSWER_S = 5.0  # Linux answers within half a second


class MemoryActions(InsideActions, ResourceActions):
    """A part of the manager."""

    async def set_memory(self, name: str, memory_mib: int) -> VmView:
        """As much memory: under its guest if it runs, and from then on.

        ``memory_note`` of the status tells when the guest does not use all of it; the same amount once more
        asks again. Raises ``VmChangeError``, ``PlugRefusedError``, ``WrongStateError``,
        ``MemoryTooLargeError``, ``MemoryFileError`` or ``HypervisorError``; it is as it was then.
        """
        with self._exclusive(name, "add memory to"):
            record = await self._definitions.get(name)
            spec = change_spec(record.spec, {"memory_mib": memory_mib})
            vm = self._host.find(record.uuid)
            if vm is not None:
                capabilities = await asyncio.to_thread(self._capabilities)
                check_growth(vm.machine, memory_mib, capabilities.memory_total_mib)
            written = record
            if spec != record.spec:  # first: a service that is killed now leaves what was asked for
                written = await self._definitions.update(record, spec, record.autostart, None)
            said = f"{memory_mib} MiB of memory"
            if vm is None:
                said += " at its next start"
            else:
                await self._add_memory(vm, memory_mib, record, written)
                said += f"; {vm.machine.memory_note}" if vm.machine.memory_note else ""
            self._tell(EventKind.MEMORY_SET, name, record.uuid, said)
        return self._view(await self._definitions.get(name))

    async def _add_memory(self, vm: ActiveVm, memory_mib: int, record: VmRecord, written: VmRecord) -> None:
        try:
            await add_memory(vm.machine, memory_mib)
        except HypervisorError:
            if written is not record and vm.machine.spec.memory_mib != memory_mib:
                await self._definitions.update(written, record.spec, record.autostart, None)
            raise
        with suppress(HypervisorError):  # it has ended meanwhile
            vm.machine.memory_note = await look_at_memory(vm.machine, ANSWER_S)
            if not vm.machine.memory_note:
                vm.machine.memory_note = await self._guests.switch_memory_on(vm)
