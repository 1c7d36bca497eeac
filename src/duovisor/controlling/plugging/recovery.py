"""Devices that were being plugged in or out when their VM's owner was killed, or that its guest let go of.

What the VMM has is what the VM has: the rest follows, and nothing stays of a device that is not there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.plugging.changes import apply_change, name_devices, remove_device
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from duovisor.controlling.description import IncarnationDescription
    from duovisor.controlling.incarnation import Incarnation


async def settle_plugging(incarnation: Incarnation, left: IncarnationDescription) -> None:
    """Make the specification of an adopted VMM's incarnation true, before its drivers are adopted.

    Raises ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``.
    """
    if left.spec.cpus_room > left.spec.cpus:
        cpus = await incarnation.vmm.count_processors()
        incarnation.spec = incarnation.spec.model_copy(update={"cpus": cpus})
    if left.spec.memory_room_mib > left.spec.memory_mib - sum(left.plan.modules_mib):
        booted_mib = left.spec.memory_mib - sum(left.plan.modules_mib)
        memory_mib = booted_mib + await incarnation.vmm.count_modules()
        incarnation.spec = incarnation.spec.model_copy(update={"memory_mib": memory_mib})
    there = await incarnation.vmm.list_devices()
    known = set(name_devices(left.spec))
    change = left.change
    if change is not None and change.device in there and change.device not in known:
        incarnation.spec = apply_change(incarnation.spec, change)
        known.add(change.device)
    gone = known - there
    if change is not None and change.device not in there:
        gone.add(change.device)
    for device in sorted(gone):
        for found in (each for each in left.processes if each.device == device):
            running = adopt_process(found, incarnation.run_dir)
            if running is not None:
                await running.kill()
        helper = incarnation.helpers.pop(device, None)
        if helper is not None:
            helper.release()
        for path in incarnation.run_dir.glob(f"{device}.*"):
            path.unlink(missing_ok=True)
        incarnation.forget_processes(device)
        with suppress(DuovisorError):  # it is in nobody's way, and goes with the VMM
            await incarnation.vmm.remove_back_end(device)
        incarnation.spec = remove_device(incarnation.spec, device)
