"""Devices beside disks and network cards: an entropy source, and what drivers of users' own serve."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.qemu.pci import DEVICE_SLOTS, at
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import DeviceSpec, VirtualMachineSpec

ENTROPY = 4  # virtio 1.2, section 5: device types
# The types that QEMU 7.2 to 10 carry over vhost-user to a driver of any kind (input only under KVM).
# These models know virtio 1 only and have no property that says so. A generic one (vhost-user-device-pci)
# exists, but not for users.
MODELS = {
    ENTROPY: "vhost-user-rng-pci",
    34: "vhost-user-i2c-pci",
    41: "vhost-user-gpio-pci",
}


def build_devices(spec: VirtualMachineSpec, qemu: QemuAbilities, types: Sequence[int] = ()) -> list[str]:
    """Arguments for all devices; ``types`` has virtio's number of each one's type, by default entropy's.

    Raises ``PlanError`` for what the design or QEMU cannot carry.
    """
    arguments = []
    for index, device in enumerate(spec.devices):
        kind = types[index] if types else ENTROPY
        if spec.design is Design.MONOLITHIC:
            arguments += _build_inside(index, device)
        else:
            arguments += _build_channel(index, device, kind)
        if qemu.virtio_blk_queue_reset:  # a property of every virtio device; our channel has none
            arguments[-1] += ",queue_reset=off"
    return arguments


def device_socket(index: int) -> str:
    """The name of the channel on which the driver of device ``index`` serves."""
    return f"device{index}"


def _build_inside(index: int, device: DeviceSpec) -> list[str]:
    if device.file is not None:
        raise PlanError(
            f"{device.file}: a VMM of the monolithic design has only QEMU's own drivers",
            remedy="use the microkernelized design",
        )
    name = device_socket(index)
    return [
        "-object", json.dumps({"qom-type": "rng-builtin", "id": f"{name}-source"}),
        "-device", f"virtio-rng-pci,id={name},rng={name}-source,{at(DEVICE_SLOTS[index])}",
    ]  # fmt: skip


def _build_channel(index: int, device: DeviceSpec, kind: int) -> list[str]:
    model = MODELS.get(kind)
    if model is None:
        known = ", ".join(f"{number} ({name.split('-')[2]})" for number, name in MODELS.items())
        raise PlanError(
            f"{device.driver}: QEMU lends no driver outside a device of type {kind}",
            remedy=f"it does so for {known}; a disk's driver goes with the disk",
        )
    name = device_socket(index)
    place = at(DEVICE_SLOTS[index]).removesuffix(",disable-legacy=on")
    return [
        # these models greet their driver as soon as they are made: QEMU waits until it has connected
        "-chardev", f"socket,id={name}-channel,fd=@{name}@,server=on,wait=on",
        "-device", f"{model},id={name},chardev={name}-channel,{place}",
    ]  # fmt: skip
