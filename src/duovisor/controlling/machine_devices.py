"""From a VM's specification to what the drivers of its devices are started with; pure but for descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket
from duovisor.sandbox import uid_of
from duovisor.spec.vm import CacheMode, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

STORAGE_ROLE = "storage driver"
NETWORK_ROLE = "network driver"
# How long the driver looks at an idle queue before it sleeps; QEMU's iothreads do so too (poll-max-ns).
# docs/performance.md has what 0, 50 and 200 came to.
POLL_US = 50


def build_block_words(disk: DiskSpec) -> tuple[str, ...]:
    """The options of the storage driver of a disk."""
    words = ["--queues", str(disk.queues), "--queue-size", str(disk.queue_size)]
    if disk.serial:
        words += ["--serial", disk.serial]
    if disk.read_only:
        words.append("--read-only")
    if disk.cache is CacheMode.NONE and disk.format is DiskFormat.RAW:  # else it is its format process's
        words.append("--direct")
    return tuple(words)


def build_net_words(spec: VirtualMachineSpec, index: int) -> tuple[str, ...]:
    """The options of the network driver of a bridged card."""
    nic = spec.nics[index]
    return () if nic.mac_filter is False else ("--mac", mac_of(spec.name, index, nic))


def plan_nic(spec: VirtualMachineSpec, index: int, descriptors: Mapping[str, int]) -> DevicePlan:
    """How the bridged card ``index`` is served; ``descriptors`` are what its driver may hold."""
    nic = spec.nics[index]
    return DevicePlan(
        device=nic_socket(index),
        role=NETWORK_ROLE,
        driver="net",
        words=build_net_words(spec, index),
        descriptors=descriptors,
        hang_s=nic.driver_hang_s,
        on_failure=nic.on_driver_failure,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_mib),
        kind="net",
    )


def plan_disk(
    spec: VirtualMachineSpec, index: int, descriptors: Mapping[str, int], size_bytes: int = 0
) -> DevicePlan:
    """How disk ``index`` is served; ``descriptors`` are what its driver may hold.

    ``size_bytes`` is told of a formatted image; of a raw one the driver sees it.
    """
    disk = spec.disks[index]
    return DevicePlan(
        device=disk_socket(index),
        role=STORAGE_ROLE,
        driver="block",
        words=(*build_block_words(disk), *(("--size", str(size_bytes)) if size_bytes else ())),
        descriptors=descriptors,
        hang_s=disk.driver_hang_s,
        on_failure=disk.on_driver_failure,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_mib),
        poll_us=POLL_US,
    )
