"""What a pool is made of: files in a folder (``folder``), or logical volumes (``thin_pool``).

Each volume is a *file* there, told by its name: ``NAME.FORMAT``. One in the making is ``.duovisor-half-UUID``
or, an upload that is converted next, ``.duovisor-upload-UUID``; no volume's name begins with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskLockedError
from duovisor.controlling.storage.errors import (
    PoolFullError,
    PoolUnavailableError,
    VolumeBrokenError,
    VolumeInUseError,
)
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from duovisor.controlling.storage.records import PoolKind, VolumeFormat

HALF, UPLOAD = ".duovisor-half-", ".duovisor-upload-"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Space(NamedTuple):
    """A pool's size and what of it may be used, in bytes.

    ``spare_metadata`` is the free share of what it keeps for itself, without which the rest is of no use.
    """

    capacity_bytes: int
    free_bytes: int
    spare_metadata: float = 1.0


class Look(NamedTuple):
    """A volume's file: its own size, what it takes, and when it was written, if that can be known."""

    file_bytes: int
    allocated_bytes: int
    modified_ns: int | None


class Backend(Protocol):
    """One pool's files. Every method may block, and may raise ``PoolUnavailableError``.

    ``path`` is where the pool is, ``formats`` are what its volumes can be, the usual one first. A pool that
    ``takes_snapshots`` makes linked clones that need nothing of their base; ``may_hang``: who asks it may
    wait for a server. Files that ``are_devices`` have the size that they are made with.
    """

    pool: str
    kind: PoolKind
    path: Path
    formats: tuple[VolumeFormat, ...]
    takes_snapshots: bool
    are_devices: bool
    may_hang: bool

    def check(self) -> None:
        """Raises ``PoolUnavailableError`` when the pool is not what it was."""

    def read_space(self) -> Space:
        """How large it is, and what is free."""

    def find_file(self, path: str) -> str | None:
        """The file that a path without symlinks leads to, whether or not that is a volume."""

    def path_of(self, file: str) -> Path:
        """Where a file is, once it is ``prepare``d."""

    def exists(self, file: str) -> bool:
        """Whether anything of that name is there."""

    def require_absent(self, file: str) -> None:
        """Raises ``VolumeExistsError``, or ``VolumeRefusedError`` for a name that cannot be here."""

    def look_at(self, file: str) -> Look:
        """Raises ``VolumeBrokenError`` when it is not there, or not what it should be."""

    def look_at_all(self, files: Iterable[str]) -> dict[str, Look]:
        """Those at which ``look_at`` would not fail."""

    def read_size(self, file: str, volume_format: VolumeFormat) -> int:
        """What a guest sees of it, in bytes. Raises as ``look_at``."""

    def prepare(self, file: str) -> None:
        """Have it where it can be opened. Raises as ``look_at``."""

    def open(self, file: str, *, writing: bool) -> AbstractContextManager[int]:
        """A file, open and locked; its descriptor, closed on leaving.

        Raises ``VolumeInUseError`` when a VM or disk tool uses it in another way, or ``VolumeBrokenError``.
        """

    def excluding(self, file: str) -> AbstractContextManager[None]:
        """Nobody uses a file that is removed within. Raises as ``open``."""

    def make_half(self, uuid: str, size_bytes: int, prefix: str = HALF) -> Path:
        """An empty file to be filled, of at least that size where they cannot grow by themselves.

        Raises ``PoolFullError``.
        """

    def take_snapshot(self, file: str, uuid: str) -> None:
        """Make a half that has all that a file holds, where the pool ``takes_snapshots``."""

    def promote(self, uuid: str) -> None:
        """What was uploaded becomes the half."""

    def put_in_place(self, uuid: str, file: str) -> None:
        """Bring a half to the disk, then give it its name. Raises ``VolumeExistsError``."""

    def grow(self, file: str, descriptor: int, size_bytes: int) -> None:
        """Make a raw file larger, which is open."""

    def remove(self, file: str) -> None:
        """Remove a file, which need not be there."""

    def remove_halves(self) -> list[str]:
        """Remove every file in the making; returns their paths."""

    def explaining(self) -> AbstractContextManager[None]:
        """Turn an ``OSError`` into an error of the pool."""


def require_space(backend: Backend, size_bytes: int) -> None:
    """Raises ``PoolFullError`` when so many bytes would not fit."""
    free_bytes = backend.read_space().free_bytes
    if size_bytes > free_bytes:
        raise PoolFullError(
            f"pool {backend.pool} has {format_bytes(free_bytes)} free, not {format_bytes(size_bytes)}",
            remedy="delete volumes, or use another pool",
        )


@contextlib.contextmanager
def open_locked(path: Path, *, writing: bool, flags: int = 0) -> Iterator[int]:
    """A file or device, open and locked. Raises ``VolumeBrokenError`` or ``VolumeInUseError``."""
    try:
        descriptor = os.open(path, (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC | flags)
    except OSError as error:
        raise VolumeBrokenError(f"volume file {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, writing=writing)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, *, writing: bool) -> None:
    try:
        lock_disk(descriptor, str(path), read_only=not writing)
    except DiskLockedError as error:
        raise VolumeInUseError(
            f"{path} is in use by a VM or disk tool", remedy="stop its VM first"
        ) from error


@contextlib.contextmanager
def explaining(pool: str, path: Path) -> Iterator[None]:
    """Turn what the system refuses into an error of the pool."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise PoolFullError(f"pool {pool} is full: {error.strerror}") from error
        raise PoolUnavailableError(f"pool {pool}: {path}: {error.strerror}") from error


def sync(path: Path) -> None:
    """Bring a file, folder or device to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
