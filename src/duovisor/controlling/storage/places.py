"""What a place on the host could be as a pool, found without changing it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from duovisor.controlling.storage.errors import PoolRefusedError
from duovisor.controlling.storage.records import PoolKind

MOUNTS = Path("/proc/self/mountinfo")
NFS_TYPES = ("nfs", "nfs4")


def prepare_folder(path: str) -> str:
    """The folder of a new pool, without symlinks in its path; made if only it is missing.

    Raises ``PoolRefusedError``.
    """
    if not os.path.isabs(path):
        raise PoolRefusedError(f"{path!r} is no absolute path", remedy="write for example /srv/volumes")
    kind = find_kind(path, MOUNTS)
    if kind is PoolKind.LVM_THIN:
        raise PoolRefusedError(
            f"{path} is a block device; pools on LVM are not supported",
            remedy="put a file system on it, and name a folder there",
        )
    if kind is PoolKind.NFS:
        raise PoolRefusedError(
            f"{path} is on NFS, whose locks do not keep two hosts from one volume; it is not supported",
            remedy="use a folder on a file system of this host",
        )
    real = os.path.realpath(path)
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
    return real


def find_kind(path: str, mounts: Path) -> PoolKind:
    """What kind of pool a place would be; of a folder that is missing, what it would lie on."""
    try:
        if stat.S_ISBLK(os.stat(path).st_mode):
            return PoolKind.LVM_THIN
    except OSError:
        pass
    return PoolKind.NFS if find_file_system(path, mounts.read_text()) in NFS_TYPES else PoolKind.DIRECTORY


def find_file_system(path: str, mounts: str) -> str:
    """The type of the file system under a path, from the text of mountinfo (proc(5)); pure but for links."""
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].encode().decode("unicode_escape")
        is_above = real == point or real.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(best):  # a later mount covers an earlier one
            best, kind = point, right.split()[0]
    return kind


def overlap(one: str, other: str) -> bool:
    """Whether one folder is, or lies in, the other; pure."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")
