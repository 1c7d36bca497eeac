"""What a place on the host could be as a pool."""

from __future__ import annotations

import os
import stat

from duovisor.controlling.storage.errors import PoolRefusedError
from duovisor.controlling.storage.mounts import MOUNTS, find_mount
from duovisor.controlling.storage.nfs import check_mount, try_out
from duovisor.controlling.storage.records import PoolKind


def prepare_folder(path: str, kind: PoolKind) -> str:
    """The folder of a new pool, without symlinks in its path; made if only it is missing.

    It blocks, on NFS for as long as the server likes. Raises ``PoolRefusedError``.
    """
    if not os.path.isabs(path):
        raise PoolRefusedError(f"{path!r} is no absolute path", remedy="write for example /srv/volumes")
    found = find_kind(path)
    if found is PoolKind.LVM_THIN:
        raise PoolRefusedError(
            f"{path} is a block device",
            remedy="of an LVM thin pool: duovisor pool create NAME --kind lvm-thin --vg GROUP --thin-pool LV",
        )
    real = os.path.realpath(path)
    if kind is PoolKind.NFS:
        check_mount(path, find_mount(real, MOUNTS.read_text()))
    elif found is PoolKind.NFS:
        raise PoolRefusedError(f"{path} is on NFS", remedy="duovisor pool create NAME PATH --kind nfs")
    try:
        if not os.path.isdir(real):
            os.mkdir(real, mode=0o711)
    except FileExistsError as error:
        raise PoolRefusedError(f"{path} is no folder") from error
    except OSError as error:
        raise PoolRefusedError(f"cannot make the folder {path}: {error.strerror}") from error
    if real == "/":
        raise PoolRefusedError("/ cannot be a pool", remedy="name a folder that has nothing else in it")
    if not os.access(real, os.R_OK | os.W_OK | os.X_OK):
        raise PoolRefusedError(f"{path} cannot be written to")
    if kind is PoolKind.NFS:
        try_out(real)
    return real


def find_kind(path: str) -> PoolKind:
    """What kind of pool a place would be; of a folder that is missing, what it would lie on."""
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return PoolKind.LVM_THIN
    except OSError:
        pass
    mount = find_mount(os.path.realpath(path), MOUNTS.read_text())
    return PoolKind.NFS if mount is not None and mount.is_nfs else PoolKind.DIRECTORY


def overlap(one: str, other: str) -> bool:
    """Whether one folder is, or lies in, the other; pure."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")
