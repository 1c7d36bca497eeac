"""The files in a pool's folder: none is followed out of it, and a new one appears whole or not at all.

A file in the making is ``.duovisor-half-UUID`` or, an upload that is converted next,
``.duovisor-upload-UUID``; no volume's name begins with a dot. These functions may block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskLockedError
from duovisor.controlling.storage.errors import (
    PoolFullError,
    PoolUnavailableError,
    VolumeBrokenError,
    VolumeExistsError,
    VolumeInUseError,
)
from duovisor.controlling.storage.mounts import MOUNTS, find_mount, find_mount_of
from duovisor.controlling.storage.records import PoolKind
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.storage.mounts import Mount

HALF, UPLOAD = ".duovisor-half-", ".duovisor-upload-"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Space(NamedTuple):
    """A file system's size and what of it may be used, in bytes."""

    capacity_bytes: int
    free_bytes: int


class Folder:
    """One pool's folder; of the kind ``nfs``, it is used only while it is mounted."""

    def __init__(self, pool: str, path: str, kind: PoolKind = PoolKind.DIRECTORY) -> None:
        self.pool = pool
        self.path = Path(path)
        self.kind = kind

    def check(self) -> None:
        """Raises ``PoolUnavailableError`` when it is not the folder that it was."""
        reason = ""
        try:
            if self.kind is PoolKind.NFS and not _is_nfs(find_mount(str(self.path), MOUNTS.read_text())):
                reason = "is not mounted: it is no folder on NFS"
            elif not stat.S_ISDIR(os.lstat(self.path).st_mode):
                reason = "is no folder"
            elif os.path.realpath(self.path) != str(self.path):
                reason = "leads elsewhere now"
            elif not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
                reason = "cannot be written to"
        except OSError as error:
            reason = f"cannot be used: {error.strerror}"
        if reason:
            raise PoolUnavailableError(f"pool {self.pool}: {self.path} {reason}", remedy="is it mounted?")

    def read_space(self) -> Space:
        """Raises ``PoolUnavailableError``."""
        self.check()
        found = os.statvfs(self.path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def require_space(self, size_bytes: int) -> None:
        """Raises ``PoolFullError`` when so many bytes would not fit, ``PoolUnavailableError``."""
        free_bytes = self.read_space().free_bytes
        if size_bytes > free_bytes:
            raise PoolFullError(
                f"pool {self.pool} has {format_bytes(free_bytes)} free, not {format_bytes(size_bytes)}",
                remedy="delete volumes, or use another pool",
            )

    def require_absent(self, file: str) -> None:
        """Raises ``VolumeExistsError`` when something lies where a new volume's file would."""
        if os.path.lexists(self.path / file):
            raise VolumeExistsError(
                f"pool {self.pool} has a file {file} that is no volume",
                remedy="move it away, or another name",
            )

    def look_at(self, file: str) -> os.stat_result:
        """A volume's file. Raises ``VolumeBrokenError`` unless it is plain, ``PoolUnavailableError``."""
        self.check()
        try:
            found = os.lstat(self.path / file)
        except OSError as error:
            raise VolumeBrokenError(f"volume file {self.path / file}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise VolumeBrokenError(f"volume file {self.path / file} is no plain file; it was replaced")
        return found

    @contextlib.contextmanager
    def open(self, file: str, *, writing: bool) -> Iterator[int]:
        """A volume's file, open and locked; its descriptor, closed on leaving.

        Raises ``VolumeInUseError`` when a VM or disk tool uses it in another way, or ``VolumeBrokenError``.
        """
        self.look_at(file)
        path = self.path / file
        flags = (os.O_RDWR if writing else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            raise VolumeBrokenError(f"volume file {path}: {error.strerror}") from error
        try:
            _lock(descriptor, path, writing=writing)
            yield descriptor
        finally:
            os.close(descriptor)

    def make_half(self, uuid: str, prefix: str = HALF) -> Path:
        """An empty file to be filled. Raises ``PoolUnavailableError`` or ``PoolFullError``."""
        self.check()
        path = self.path / f"{prefix}{uuid}"
        with self.explaining(), self._opened() as folder:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(path.name, flags, 0o600, dir_fd=folder))
        return path

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder itself, so that an unmounting in this moment leads to no other one below it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if self.kind is PoolKind.NFS and not _is_nfs(find_mount_of(descriptor)):
                raise PoolUnavailableError(f"pool {self.pool}: {self.path} is not mounted")
            yield descriptor
        finally:
            os.close(descriptor)

    def put_in_place(self, half: Path, file: str) -> None:
        """Bring a file to the disk, then give it its name. Raises ``VolumeExistsError``."""
        with self.explaining():
            sync(half)
            try:
                os.link(half, self.path / file)  # unlike a rename, it replaces nothing
            except FileExistsError:
                self.require_absent(file)
                raise
            half.unlink()
            sync(self.path)

    def remove(self, file: str) -> None:
        """Remove a file, which need not be there."""
        with self.explaining():
            (self.path / file).unlink(missing_ok=True)
            sync(self.path)

    def remove_halves(self) -> list[str]:
        """Remove every file in the making; returns their paths."""
        found = [path for path in self.path.iterdir() if path.name.startswith((HALF, UPLOAD))]
        for path in found:
            path.unlink(missing_ok=True)
        return [str(path) for path in found]

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what the file system refuses into an error of the pool."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise PoolFullError(f"pool {self.pool} is full: {error.strerror}") from error
            raise PoolUnavailableError(f"pool {self.pool}: {self.path}: {error.strerror}") from error


def _lock(descriptor: int, path: Path, *, writing: bool) -> None:
    try:
        lock_disk(descriptor, str(path), read_only=not writing)
    except DiskLockedError as error:
        raise VolumeInUseError(
            f"{path} is in use by a VM or disk tool", remedy="stop its VM first"
        ) from error


def _is_nfs(mount: Mount | None) -> bool:
    return mount is not None and mount.is_nfs


def exists(path: Path) -> bool:
    """Whether anything is there, a broken link too."""
    return os.path.lexists(path)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
