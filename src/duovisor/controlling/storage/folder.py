"""A pool of files in a folder: none is followed out of it, and a new one appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.storage.backend import HALF, UPLOAD, Look, Space, explaining, open_locked, sync
from duovisor.controlling.storage.errors import PoolUnavailableError, VolumeBrokenError, VolumeExistsError
from duovisor.controlling.storage.heads import read_size
from duovisor.controlling.storage.mounts import MOUNTS, find_mount, find_mount_of
from duovisor.controlling.storage.records import PoolKind, VolumeFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from duovisor.controlling.storage.mounts import Mount

BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are


class Folder:
    """A ``Backend``: one pool's folder. Of the kind ``nfs``, it is used only while it is mounted."""

    formats: tuple[VolumeFormat, ...] = (VolumeFormat.QCOW2, VolumeFormat.RAW)
    takes_snapshots = False
    are_devices = False

    def __init__(self, pool: str, path: str, kind: PoolKind = PoolKind.DIRECTORY) -> None:
        self.pool = pool
        self.path = Path(path)
        self.kind = kind
        self.may_hang = kind is PoolKind.NFS

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
        """That of its file system."""
        self.check()
        found = os.statvfs(self.path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def find_file(self, path: str) -> str | None:
        """See ``Backend``."""
        folder, file = os.path.split(path)
        return file if folder == str(self.path) else None

    def path_of(self, file: str) -> Path:
        """See ``Backend``."""
        return self.path / file

    def exists(self, file: str) -> bool:
        """Whether anything is there, a broken link too."""
        return os.path.lexists(self.path / file)

    def require_absent(self, file: str) -> None:
        """Raises ``VolumeExistsError`` when something lies where a new volume's file would."""
        if self.exists(file):
            raise VolumeExistsError(
                f"pool {self.pool} has a file {file} that is no volume",
                remedy="move it away, or another name",
            )

    def look_at(self, file: str) -> Look:
        """Raises ``VolumeBrokenError`` unless it is plain."""
        self.check()
        return self._look_at(file)

    def look_at_all(self, files: Iterable[str]) -> dict[str, Look]:
        """See ``Backend``."""
        self.check()
        found = {}
        for file in files:
            with contextlib.suppress(VolumeBrokenError):
                found[file] = self._look_at(file)
        return found

    def _look_at(self, file: str) -> Look:
        try:
            found = os.lstat(self.path / file)
        except OSError as error:
            raise VolumeBrokenError(f"volume file {self.path / file}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise VolumeBrokenError(f"volume file {self.path / file} is no plain file; it was replaced")
        return Look(found.st_size, found.st_blocks * BLOCK_BYTES, found.st_mtime_ns)

    def read_size(self, file: str, volume_format: VolumeFormat) -> int:
        """As its header says."""
        self.look_at(file)
        return read_size(self.path / file, volume_format)

    def prepare(self, file: str) -> None:
        """It is there."""
        self.look_at(file)

    def open(self, file: str, *, writing: bool) -> AbstractContextManager[int]:
        """See ``Backend``."""
        self.look_at(file)
        return open_locked(self.path / file, writing=writing, flags=os.O_NOFOLLOW)

    @contextlib.contextmanager
    def excluding(self, file: str) -> Iterator[None]:
        """It stays locked."""
        with self.open(file, writing=True):
            yield

    def make_half(self, uuid: str, size_bytes: int, prefix: str = HALF) -> Path:
        """A file full of holes."""
        self.check()
        path = self.path / f"{prefix}{uuid}"
        with self.explaining(), self._opened() as folder:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
            try:
                os.ftruncate(descriptor, size_bytes)
            finally:
                os.close(descriptor)
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

    def take_snapshot(self, file: str, uuid: str) -> None:
        """A folder has none; linked clones are qcow2 files based on another."""
        raise NotImplementedError

    def promote(self, uuid: str) -> None:
        """See ``Backend``."""
        with self.explaining():
            os.replace(self.path / f"{UPLOAD}{uuid}", self.path / f"{HALF}{uuid}")

    def put_in_place(self, uuid: str, file: str) -> None:
        """Linked, not renamed: so it replaces nothing."""
        half = self.path / f"{HALF}{uuid}"
        with self.explaining():
            sync(half)
            try:
                os.link(half, self.path / file)
            except FileExistsError:
                self.require_absent(file)
                raise
            half.unlink()
            sync(self.path)

    def grow(self, file: str, descriptor: int, size_bytes: int) -> None:
        """See ``Backend``."""
        with self.explaining():
            os.ftruncate(descriptor, size_bytes)

    def remove(self, file: str) -> None:
        """See ``Backend``."""
        with self.explaining():
            (self.path / file).unlink(missing_ok=True)
            sync(self.path)

    def remove_halves(self) -> list[str]:
        """See ``Backend``."""
        found = [path for path in self.path.iterdir() if path.name.startswith((HALF, UPLOAD))]
        for path in found:
            path.unlink(missing_ok=True)
        return [str(path) for path in found]

    def explaining(self) -> AbstractContextManager[None]:
        """See ``Backend``."""
        return explaining(self.pool, self.path)


def _is_nfs(mount: Mount | None) -> bool:
    return mount is not None and mount.is_nfs
