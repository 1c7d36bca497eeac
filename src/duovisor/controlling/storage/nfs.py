"""What a folder on NFS must be to be a pool, tried out where it cannot be read.

Programs that read images run as users of their own, with nothing but the right to pass over modes, which is
of no use on a server. So the server must take all users for one (``all_squash``), or let them write.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING
from uuid import uuid4

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskFileError, DiskLockedError
from duovisor.controlling.storage.backend import HALF
from duovisor.controlling.storage.errors import PoolRefusedError
from duovisor.controlling.storage.image_tool import UID

if TYPE_CHECKING:
    from duovisor.controlling.storage.mounts import Mount

FALLIBLE = ("soft", "softerr")


def check_mount(path: str, mount: Mount | None) -> None:
    """Raises ``PoolRefusedError`` unless it is NFS, mounted so that an outage is no error for a guest."""
    if mount is None or not mount.is_nfs:
        found = "nothing" if mount is None else f"{mount.type}, mounted at {mount.point}"
        raise PoolRefusedError(
            f"{path} is not on NFS but on {found}", remedy="mount it first; in /etc/fstab, so that it stays"
        )
    if fallible := [option for option in FALLIBLE if option in mount.options]:
        raise PoolRefusedError(
            f"{mount.point} is mounted {fallible[0]}: when its server is away, guests would meet errors",
            remedy="mount it hard, which is the default",
        )


def try_out(folder: str) -> None:
    """Make a file, lock it, and open it as another user. Raises ``PoolRefusedError``."""
    path = os.path.join(folder, f"{HALF}{uuid4()}")
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PoolRefusedError(f"cannot make a file in {folder}: {error.strerror}") from error
    try:
        lock_disk(descriptor, path, read_only=False)
        if os.geteuid() == 0:
            _open_as_other(descriptor)
    except (DiskFileError, DiskLockedError) as error:
        raise PoolRefusedError(
            f"files in {folder} cannot be locked: {error}", remedy="NFS 4, or a lock daemon for NFS 3"
        ) from error
    except OSError as error:
        raise PoolRefusedError(
            f"the server of {folder} gives a file of ours to no other user ({error.strerror}), and programs "
            "that read images have users of their own",
            remedy="export it with all_squash,anonuid=UID,anongid=GID, those of the folder's owner",
        ) from error
    finally:
        os.close(descriptor)
        os.unlink(path)


def _open_as_other(descriptor: int) -> None:
    """Open a file again, by no path, as another user with no right of root's: only this thread is that."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = libc.setfsgid(UID), libc.setfsuid(UID)
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
    finally:
        libc.setfsuid(own[1])
        libc.setfsgid(own[0])
