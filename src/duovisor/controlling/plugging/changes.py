"""A specification with a device more or less; pure. The others keep their slots, and so their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.spec.vm import MAX_DISKS, MAX_NICS, DiskSpec, NicSpec, VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.controlling.description import DeviceChange

Device = TypeVar("Device", DiskSpec, NicSpec)

_NAME = re.compile(r"(disk|nic)(\d{1,3})")


def name_devices(spec: VirtualMachineSpec) -> dict[str, DiskSpec | NicSpec]:
    """Every disk and network card, by its name."""
    disks: dict[str, DiskSpec | NicSpec] = {disk_socket(slot): disk for slot, disk in spec.numbered_disks()}
    return disks | {nic_socket(slot): nic for slot, nic in spec.numbered_nics()}


def slot_of(device: str) -> int:
    """The slot in a device's name."""
    match = _NAME.fullmatch(device)
    assert match is not None
    return int(match[2])


def place_disk(disk: DiskSpec, specs: Iterable[VirtualMachineSpec]) -> DiskSpec:
    """The disk with a slot that is free in all of these. Raises ``PlugRefusedError``."""
    taken = {slot for spec in specs for slot, _ in spec.numbered_disks()}
    return disk.model_copy(update={"slot": _find_slot("disk", disk.slot, taken, MAX_DISKS)})


def place_nic(nic: NicSpec, specs: Iterable[VirtualMachineSpec]) -> NicSpec:
    """The card with a slot that is free in all of these. Raises ``PlugRefusedError``."""
    taken = {slot for spec in specs for slot, _ in spec.numbered_nics()}
    return nic.model_copy(update={"slot": _find_slot("nic", nic.slot, taken, MAX_NICS)})


def _find_slot(kind: str, wanted: int | None, taken: set[int], most: int) -> int:
    if wanted is not None and wanted in taken:
        raise PlugRefusedError(f"there is a {kind}{wanted} already", remedy="leave slot out, or use another")
    free = next((slot for slot in range(most) if slot not in taken), None)
    if free is None:
        raise PlugRefusedError(f"there are {most} {kind}s already, and no room for another")
    return free if wanted is None else wanted


def add_device(spec: VirtualMachineSpec, device: DiskSpec | NicSpec) -> VirtualMachineSpec:
    """The specification with the device, which has a slot. Raises ``PlugRefusedError``: they do not fit."""
    if isinstance(device, DiskSpec):
        update: dict[str, object] = {"disks": (*spec.disks, device)}
    else:
        update = {"nics": (*spec.nics, device)}
    try:
        return VirtualMachineSpec.model_validate(dict(spec) | update)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PlugRefusedError(said) from error


def remove_device(spec: VirtualMachineSpec, device: str) -> VirtualMachineSpec:
    """The specification without the device; those behind it get the slots that they had written down."""
    disks = [(slot, disk) for slot, disk in spec.numbered_disks() if disk_socket(slot) != device]
    nics = [(slot, nic) for slot, nic in spec.numbered_nics() if nic_socket(slot) != device]
    return spec.model_copy(update={"disks": _pin(disks), "nics": _pin(nics)})


def _pin(numbered: list[tuple[int, Device]]) -> tuple[Device, ...]:
    return tuple(
        each if each.slot == slot or (each.slot is None and slot == position) else _give(each, slot)
        for position, (slot, each) in enumerate(numbered)
    )


def _give(device: Device, slot: int) -> Device:
    return device.model_copy(update={"slot": slot})


def apply_change(spec: VirtualMachineSpec, change: DeviceChange) -> VirtualMachineSpec:
    """What a specification is after a change."""
    device = change.disk or change.nic
    return remove_device(spec, change.device) if device is None else add_device(spec, device)
