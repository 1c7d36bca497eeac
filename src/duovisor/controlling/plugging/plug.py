"""Plugs a disk or a network card into a running VM, or out of it: all of it, or nothing.

What is about to change is written down before the host is touched; ``recovery`` finishes or undoes it when
this process is killed. That a device is there, or gone, is what the VMM says.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, TypeVar

from duovisor.controlling.description import DeviceChange
from duovisor.controlling.machine_disks import rate_of
from duovisor.controlling.machine_limits import limit_disk
from duovisor.controlling.moving.checks import pin_machine
from duovisor.controlling.networks.bridged import check_bridge
from duovisor.controlling.plugging.changes import apply_change, name_devices, remove_device, slot_of
from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.plugging.serving import Card, Disk, stop_serving
from duovisor.errors import DuovisorError
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.hot_plug import build_disk_plug, build_nic_plug
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.hypervisor.qemu.pci import HOT_PLUG_BUS
from duovisor.hypervisor.vmm_devices import LIVE
from duovisor.spec.vm import DiskSpec, VmmKind

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from duovisor.controlling.machine import Machine
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.qemu.hot_plug import Plug
    from duovisor.spec.vm import NicSpec, VirtualMachineSpec

T = TypeVar("T")


def check_plugging(machine: Machine, action: str) -> None:
    """Raises ``PlugRefusedError`` for a VM whose devices cannot change while it runs."""
    if machine.current.decision.kind is VmmKind.THIN:
        raise PlugRefusedError(
            f"cannot {action} {machine.name} while it runs: the devices of the thin VMM are fixed",
            remedy=f"stop it, and duovisor vm edit {machine.name} --set vmm=qemu",
        )
    if not any(f"id={HOT_PLUG_BUS}," in word for word in machine.vmm.plan.argv):
        raise PlugRefusedError(
            f"cannot {action} {machine.name} while it runs: it was started without room for that",
            remedy=f"duovisor vm shutdown {machine.name}",
        )


async def plug_in(machine: Machine, device: DiskSpec | NicSpec, capabilities: HostCapabilities) -> str:
    """Give a running VM a disk or card, whose slot and path are known; returns its name.

    Raises ``PlugRefusedError``, ``WrongStateError`` or what a start may raise; then nothing has changed. Once
    begun it goes to its end, though cancelled.
    """
    machine.vmm.lifecycle.require(LIVE, "plug a device into")
    check_plugging(machine, "plug a device into")
    assert device.slot is not None
    if isinstance(device, DiskSpec):
        change = DeviceChange(device=disk_socket(device.slot), disk=device)
    else:
        change = DeviceChange(device=nic_socket(device.slot), nic=device)
        if device.bridge is not None:
            check_bridge(device.bridge)
    spec = apply_change(machine.spec, change)
    async with machine.moving:
        await to_its_end(_plug_in(machine, change, spec, device, capabilities))
    return change.device


async def take_out(machine: Machine, device: str, *, timeout_s: float) -> None:
    """Take a disk or card away from a running VM; its guest must agree.

    Raises ``PlugRefusedError``, ``WrongStateError``, ``UnplugTimeoutError`` or ``UnplugRefusedError``; the
    guest has the device then. One that it lets go of later is dealt with by ``conclude``.
    """
    machine.vmm.lifecycle.require({State.RUNNING}, f"take {device} out of")
    check_plugging(machine, f"take {device} out of")
    async with machine.moving:
        await to_its_end(_take_out(machine, device, timeout_s))


async def conclude(machine: Machine, device: str) -> bool:
    """The guest let go of a device, unasked or late: take away what served it. Whether it was one of its."""
    async with machine.moving:
        current = machine.current
        if device not in name_devices(machine.spec) or current.vmm.state not in LIVE:
            return False
        if device in await current.vmm.list_devices():
            return False
        await to_its_end(_forget(machine, device))
    return True


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do what must not be left half done; a cancellation that comes meanwhile is none."""
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            if (this := asyncio.current_task()) is not None:
                this.uncancel()
    return task.result()


async def _plug_in(
    machine: Machine,
    change: DeviceChange,
    spec: VirtualMachineSpec,
    device: DiskSpec | NicSpec,
    capabilities: HostCapabilities,
) -> None:
    current, name = machine.current, change.device
    with ExitStack() as undo:
        files = undo.enter_context(ExitStack())
        item = Disk(spec, device, files) if isinstance(device, DiskSpec) else Card(spec, device, files)
        plug = _build_plug(machine, spec, item, capabilities)
        undo.pop_all()
    current.files[name] = files
    current.held.callback(files.close)
    current.change = change
    current.vmm.plan_plug(plug, item.taps)
    try:
        machine.group.grow(spec)
        machine.write()
        await current.vmm.open_back_end(plug, item.taps)
        if plug.binds and current.vmm.process is not None:
            await current.wait_bound(plug.binds)
        await item.serve(current, capabilities)
        await current.vmm.plug_in(plug)
        if isinstance(device, DiskSpec) and any(rate_of(device)) and name not in current.devices:
            await limit_disk(current, name, rate_of(device))
    except BaseException:
        await _undo(machine, name)
        raise
    current.spec, current.change = spec, None
    machine.write()
    if name in current.devices:
        current.devices[name].want_spare()


def _build_plug(
    machine: Machine, spec: VirtualMachineSpec, item: Disk | Card, capabilities: HostCapabilities
) -> Plug:
    _, qemu = pin_machine(machine, capabilities).require_qemu()
    if isinstance(item, Disk):
        return build_disk_plug(spec, slot_of(item.name), qemu, item.chain)
    return build_nic_plug(spec, slot_of(item.name), qemu, machine.decision.accelerator)


async def _undo(machine: Machine, device: str) -> None:
    """The device did not come: nothing of it stays."""
    current = machine.current
    with suppress(DuovisorError):  # a VMM that has ended has nothing behind it
        await current.vmm.remove_back_end(device)
    await stop_serving(current, device)
    current.change = None
    machine.group.grow(current.spec)
    machine.write()


async def _take_out(machine: Machine, device: str, timeout_s: float) -> None:
    current = machine.current
    supervisor = current.devices.get(device)
    current.change = DeviceChange(device=device)
    machine.write()
    if supervisor is not None:
        supervisor.is_leaving = True
    try:
        await current.vmm.take_out(device, timeout_s=timeout_s)
    except BaseException:
        current.change = None
        if supervisor is not None:
            supervisor.is_leaving = False
        machine.write()
        raise
    await _forget(machine, device)


async def _forget(machine: Machine, device: str) -> None:
    """The guest has let go of the device: end what served it, and have it in no specification."""
    current = machine.current
    current.change = DeviceChange(device=device)
    await stop_serving(current, device)
    await current.vmm.remove_back_end(device)
    current.spec, current.change = remove_device(current.spec, device), None
    machine.group.grow(current.spec)
    machine.write()
