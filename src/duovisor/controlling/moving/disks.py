"""Disks change hands: who has an image's lock, and when what is cached of it goes to the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.disk_lock import lock_disk, unlock_disk
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from duovisor.controlling.incarnation import Incarnation


def write_out(old: Incarnation) -> None:
    """Bring what is cached to the disk, twice: QEMU does so when it stops, and the guest waits for it then.

    Raises ``OSError``. Blocks.
    """
    for _ in range(2):
        for disk in old.spec.disks:
            if disk.path and not disk.read_only:
                descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


async def hand_over_disks(old: Incarnation, new: Incarnation, undo: AsyncExitStack) -> None:
    """Let the successor have the images; ``undo`` gives them back.

    A QEMU lets go of its images when its state is saved, and takes them when it goes on. Drivers have theirs
    from us: a raw one with its lock, another through its format process. Raises ``DiskLockedError`` when
    somebody else has taken one meanwhile, or ``PartitionError``.
    """
    if old.spec.design is not new.spec.design:
        _hand_locks_over(old, new, undo)
    for keeper in old.keepers.values():
        undo.push_async_callback(keeper.take_image)
        await keeper.release_image()
    for keeper in new.keepers.values():
        undo.push_async_callback(keeper.release_image)
        await keeper.take_image()


def _hand_locks_over(old: Incarnation, new: Incarnation, undo: AsyncExitStack) -> None:
    to_drivers = new.spec.design is Design.MICROKERNELIZED
    for disk, descriptor in (new if to_drivers else old).list_images():
        if to_drivers:
            lock_disk(descriptor, disk.path, read_only=disk.read_only)
            undo.callback(unlock_disk, descriptor)
        else:
            unlock_disk(descriptor)
            undo.callback(lock_disk, descriptor, disk.path, read_only=disk.read_only)
