"""How disks are served: by our drivers, plain or encrypting, or by users' own."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.disk_files import SECTOR_BYTES, open_others
from duovisor.controlling.driver_files import DISK_TYPE, MEMORY_FILE, look_at_driver
from duovisor.controlling.key_files import KEY_MEMORY
from duovisor.controlling.machine_drivers import build_own_words
from duovisor.controlling.partitions.factory import Modules
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.adoption import adopt_image, is_memory_file, take_descriptor
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.sandbox import uid_of
from duovisor.spec.vm import ENCRYPTED_DRIVER, CacheMode, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import ExitStack

    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

STORAGE_ROLE = "storage driver"
ENCRYPTED_ROLE = "encrypting driver"
# How long the driver looks at an idle queue before it sleeps; QEMU's iothreads do so too (poll-max-ns).
# docs/performance.md has what 0, 50 and 200 came to.
POLL_US = 50
_MEMORY_FILES = {"key": KEY_MEMORY, "source": MEMORY_FILE}


def build_block_words(disk: DiskSpec) -> tuple[str, ...]:
    """The options of the storage driver of a disk; pure."""
    words = ["--queues", str(disk.queues), "--queue-size", str(disk.queue_size)]
    if disk.serial:
        words += ["--serial", disk.serial]
    if disk.read_only:
        words.append("--read-only")
    if disk.cache is CacheMode.NONE and disk.format is DiskFormat.RAW:  # else it is its format process's
        words.append("--direct")
    if disk.sector_bytes != SECTOR_BYTES:
        words += ["--block-size", str(disk.sector_bytes)]
    return tuple(words)


def rate_of(disk: DiskSpec) -> tuple[int, int]:
    """How many requests and bytes a second a disk's driver lets through; 0 is no limit."""
    return disk.iops_limit or 0, disk.bandwidth_limit or 0


def plan_disk(
    spec: VirtualMachineSpec,
    index: int,
    descriptors: Mapping[str, int],
    size_bytes: int = 0,
    files: ExitStack | None = None,
) -> DevicePlan:
    """How disk ``index`` is served; ``descriptors`` are what its driver may hold.

    ``size_bytes`` is told of a formatted image; of a raw one the driver sees it. ``files`` closes what is
    read later: the file of a driver of one's own that was changed.
    """
    disk = spec.disk_at(index)
    words = (*build_block_words(disk), *(("--size", str(size_bytes)) if size_bytes else ()))
    plan = DevicePlan(
        device=disk_socket(index),
        role=STORAGE_ROLE,
        driver="block",
        words=words,
        descriptors=descriptors,
        hang_s=disk.driver_hang_s,
        on_failure=disk.on_driver_failure,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_room_mib),
        poll_us=POLL_US,
        rate=rate_of(disk),
    )
    if disk.driver == ENCRYPTED_DRIVER:
        return replace(plan, role=ENCRYPTED_ROLE, driver="encrypted", modules=Modules.ENCRYPTION)
    if disk.driver_file is None:
        return plan
    return replace(
        plan,
        role=f"driver {Path(disk.driver).name}",
        driver="own-disk",
        words=(*words, *build_own_words(disk.driver, DISK_TYPE, disk.options)),
        kind="own-disk",
        modules=Modules.LIBRARY,
        source_code=look_at_driver(descriptors["source"], disk.driver).digest,
        reread=partial(_reread, plan, spec, index, files) if files is not None else None,
    )


def adopt_disk(disk: DiskSpec, pids: Iterable[int], files: ExitStack) -> dict[str, int]:
    """What the driver of a disk may hold, as one of these processes holds it, or else opened again.

    ``files`` closes it. Raises ``ControllingError``.
    """
    pids = tuple(pids)
    found: dict[str, int] = {}
    if disk.path:
        image = adopt_image(disk, pids)
        files.callback(image.close)
        found["image"] = image.descriptor
    names = (*(["key"] if disk.key_file else []), *(["source"] if disk.driver_file else []))
    for name in names:
        for pid in pids:
            descriptor = take_descriptor(pid, is_memory_file(_MEMORY_FILES[name]))
            if descriptor is not None:
                files.callback(os.close, descriptor)
                found[name] = descriptor
                break
    return found if set(names) <= set(found) else {**found, **open_others(disk, files)}


def _reread(plan: DevicePlan, spec: VirtualMachineSpec, index: int, files: ExitStack) -> DevicePlan:
    """The plan with the driver's file as it is now. Raises ``DriverFileError``."""
    others = open_others(spec.disk_at(index), files)
    return plan_disk(spec, index, {**plan.descriptors, **others}, files=files)
