"""Disks: in the VMM (monolithic), or behind a channel (microkernelized). The guest sees the same device."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.qemu.boot_order import build_boot_index
from duovisor.hypervisor.qemu.images import ImageFile, build_image_nodes, choose_cache
from duovisor.hypervisor.qemu.pci import DISK_SLOTS, at_pluggable
from duovisor.spec.cdrom import BootDevice
from duovisor.spec.vm import BLOCK_DRIVER, Design

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec


def build_disks(
    spec: VirtualMachineSpec,
    qemu: QemuAbilities,
    block_devices: frozenset[str] = frozenset(),
    chains: Sequence[Sequence[ImageFile]] = (),
) -> list[str]:
    """Arguments for all disks.

    ``block_devices`` names the paths that are not files; ``chains`` has, for each disk in order, its image
    and what that is based on. Without them, every image stands alone. Raises ``PlanError`` for a driver that
    the design cannot have.
    """
    arguments = []
    for position, (index, disk) in enumerate(spec.numbered_disks()):
        boot = build_boot_index(spec, BootDevice.DISK, index)
        if spec.design is Design.MONOLITHIC:
            alone = [ImageFile(disk.path, disk.format, disk.path in block_devices)]
            arguments += _build_inside(index, disk, chains[position] if chains else alone, qemu, boot)
        else:
            arguments += _build_channel(index, disk, boot)
    return arguments


def disk_socket(index: int) -> str:
    """The name of the channel on which the driver of disk ``index`` serves."""
    return f"disk{index}"


def _build_inside(
    index: int, disk: DiskSpec, chain: Sequence[ImageFile], qemu: QemuAbilities, boot: list[str]
) -> list[str]:
    """The driver is part of the VMM: QEMU opens the image and serves it from a thread of its own."""
    if disk.driver != BLOCK_DRIVER:
        raise PlanError(
            f"disk {index}: driver {disk.driver} works beside a VMM; one of the monolithic design has only "
            "QEMU's own drivers",
            remedy="use the microkernelized design",
        )
    node = disk_socket(index)
    nodes = build_image_nodes(
        node,
        chain,
        cache=choose_cache(disk, is_block_device=chain[0].is_block_device),
        read_only=disk.read_only,
        aio="io_uring" if qemu.io_uring else "threads",
    )
    properties = [
        f"virtio-blk-pci,id={node},drive={node},iothread={node}-thread",
        *_guest_view(index, disk),
        *boot,
    ]
    if disk.serial:
        properties.append(f"serial={disk.serial}")
    if qemu.virtio_blk_queue_reset:
        properties.append("queue_reset=off")  # vhost-user-blk has none, and a switch needs equal features
    return [
        "-object", json.dumps({"qom-type": "iothread", "id": f"{node}-thread"}),
        *(part for each in nodes for part in ("-blockdev", json.dumps(each))),
        "-device", ",".join(properties),
    ]  # fmt: skip


def _build_channel(index: int, disk: DiskSpec, boot: list[str]) -> list[str]:
    """The driver is elsewhere: the VMM holds a listening socket and nothing of the image."""
    name = disk_socket(index)
    properties = [f"vhost-user-blk-pci,id={name},chardev={name}-channel", *_guest_view(index, disk), *boot]
    return [
        "-chardev", f"socket,id={name}-channel,fd=@{name}@,server=on,wait=off",
        "-device", ",".join(properties),
    ]  # fmt: skip


def _guest_view(index: int, disk: DiskSpec) -> list[str]:
    """What the guest can tell the device by: address and queues."""
    return [
        at_pluggable(DISK_SLOTS[index]),
        f"num-queues={disk.queues},queue-size={disk.queue_size}",
    ]
