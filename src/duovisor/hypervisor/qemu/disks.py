"""Disks: in the VMM (monolithic), or behind a channel (microkernelized). The guest sees the same device."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.qemu.pci import DISK_SLOTS, at
from duovisor.spec.vm import CacheMode, Design, DiskFormat

if TYPE_CHECKING:
    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec


def build_disks(
    spec: VirtualMachineSpec, qemu: QemuAbilities, block_devices: frozenset[str] = frozenset()
) -> list[str]:
    """Arguments for all disks; ``block_devices`` names the paths that are not files.

    Raises ``PlanError`` for what the design cannot serve.
    """
    arguments = []
    for index, disk in enumerate(spec.disks):
        if spec.design is Design.MONOLITHIC:
            arguments += _build_inside(index, disk, disk.path in block_devices, qemu)
        else:
            arguments += _build_channel(index, disk)
    return arguments


def disk_socket(index: int) -> str:
    """The name of the channel on which the driver of disk ``index`` serves."""
    return f"disk{index}"


def _build_inside(index: int, disk: DiskSpec, is_device: bool, qemu: QemuAbilities) -> list[str]:
    """The driver is part of the VMM: QEMU opens the image and serves it from a thread of its own."""
    node = disk_socket(index)
    backend = [
        {"driver": disk.format.value, "node-name": node, "file": f"{node}-file", "read-only": disk.read_only},
        _build_file_node(f"{node}-file", disk, is_device, qemu),
    ]
    properties = [f"virtio-blk-pci,id={node},drive={node},iothread={node}-thread", *_guest_view(index, disk)]
    if disk.serial:
        properties.append(f"serial={disk.serial}")
    if qemu.virtio_blk_queue_reset:
        properties.append("queue_reset=off")  # vhost-user-blk has none, and a switch needs equal features
    return [
        "-object", json.dumps({"qom-type": "iothread", "id": f"{node}-thread"}),
        *(part for child in reversed(backend) for part in ("-blockdev", json.dumps(child))),
        "-device", ",".join(properties),
    ]  # fmt: skip


def _build_file_node(node: str, disk: DiskSpec, is_device: bool, qemu: QemuAbilities) -> dict[str, Any]:
    return {
        "driver": "host_device" if is_device else "file",
        "node-name": node,
        "filename": disk.path,
        "read-only": disk.read_only,
        "aio": "io_uring" if qemu.io_uring else "threads",
        "cache": {"direct": disk.cache is CacheMode.NONE, "no-flush": False},
        "discard": "unmap",
    }


def _build_channel(index: int, disk: DiskSpec) -> list[str]:
    """The driver is elsewhere: the VMM holds a listening socket and nothing of the image."""
    if disk.format is not DiskFormat.RAW:
        raise PlanError(
            f"{disk.path}: the microkernelized design's storage driver reads raw images, not {disk.format}",
            remedy=f"qemu-img convert -O raw {disk.path} NEW.raw, or use the monolithic design",
        )
    name = disk_socket(index)
    properties = [f"vhost-user-blk-pci,id={name},chardev={name}-channel", *_guest_view(index, disk)]
    return [
        "-chardev", f"socket,id={name}-channel,fd=@{name}@,server=on,wait=off",
        "-device", ",".join(properties),
    ]  # fmt: skip


def _guest_view(index: int, disk: DiskSpec) -> list[str]:
    """What the guest can tell the device by: address, queues, boot order."""
    return [
        at(DISK_SLOTS[index]),
        f"num-queues={disk.queues},queue-size={disk.queue_size},bootindex={index + 1}",
    ]
