"""Disks change hands: who has an image's lock, and when what is cached of it goes to the disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.controlling.disk_lock import lock_disk, unlock_disk
from duovisor.spec.vm import Design, DiskFormat

if TYPE_CHECKING:
    from contextlib import ExitStack

    from duovisor.controlling.incarnation import Incarnation


def write_out(old: Incarnation) -> None:
    """Bring what is cached to the disk, twice: QEMU does so when it stops, and the guest waits for it then.

    Raises ``OSError``. Blocks.
    """
    for _ in range(2):
        for disk in old.spec.disks:
            if disk.path and not disk.read_only and disk.format is DiskFormat.RAW:
                descriptor = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)


def hand_over_disks(old: Incarnation, new: Incarnation, undo: ExitStack) -> None:
    """Let the successor have the locks of the images; ``undo`` gives them back.

    A QEMU lets go of its images when its state is saved, and takes them when it goes on. Drivers have theirs
    from us. Raises ``DiskLockedError`` when somebody else has taken one meanwhile.
    """
    if old.spec.design is new.spec.design:
        return  # from QEMU to QEMU, or the very same open files
    to_drivers = new.spec.design is Design.MICROKERNELIZED
    images = (new if to_drivers else old).list_images()
    for disk, descriptor in images:
        if to_drivers:
            lock_disk(descriptor, disk.path, read_only=disk.read_only)
            undo.callback(unlock_disk, descriptor)
        else:
            unlock_disk(descriptor)
            undo.callback(lock_disk, descriptor, disk.path, read_only=disk.read_only)
