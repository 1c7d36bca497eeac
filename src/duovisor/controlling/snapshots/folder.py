"""The folder of one VM's snapshots: ``STATE/snapshots/UUID/NAME/{snapshot.json,state,memory,diskN}``.

A snapshot has its name when it is whole and on the disk, and loses it before its files are removed:
whatever happens in between leaves ``.half-NAME`` or ``.gone-NAME``, which ``sweep`` removes. All may block.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ValidationError

from duovisor.controlling.snapshots.copying import BLOCK_BYTES
from duovisor.controlling.snapshots.documents import Snapshot, SnapshotView
from duovisor.controlling.snapshots.errors import (
    SnapshotBrokenError,
    SnapshotExistsError,
    SnapshotFullError,
    SnapshotNotFoundError,
)
from duovisor.controlling.storage.backend import NO_SPACE, sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCUMENT, STATE, MEMORY = "snapshot.json", "state", "memory"
HALF, GONE = ".half-", ".gone-"


class SnapshotFolder:
    """The snapshots of the VM with this uuid; ``root`` is the folder of all VMs' snapshots."""

    def __init__(self, root: Path, uuid: str) -> None:
        self.path = root / uuid

    def list_names(self) -> list[str]:
        """Of all that are whole."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))

    def list_all(self) -> list[Snapshot]:
        """Oldest first. Raises ``SnapshotBrokenError``."""
        return sorted(map(self.get, self.list_names()), key=lambda each: each.created_at)

    def get(self, name: str) -> Snapshot:
        """One by its name. Raises ``SnapshotNotFoundError`` or ``SnapshotBrokenError``."""
        self.require(name)
        try:
            return Snapshot.model_validate_json((self.path / name / DOCUMENT).read_bytes())
        except (OSError, ValidationError) as error:
            raise SnapshotBrokenError(
                f"snapshot {name} cannot be read: {self.path / name / DOCUMENT}", remedy="delete it"
            ) from error

    def require(self, name: str) -> None:
        """Raises ``SnapshotNotFoundError`` when there is none of this name."""
        if name[:1] in ("", ".") or "/" in name or not (self.path / name).is_dir():
            raise SnapshotNotFoundError(f"there is no snapshot {name!r}")

    def require_absent(self, name: str) -> None:
        """Raises ``SnapshotExistsError`` when there is one of this name."""
        if os.path.lexists(self.path / name):
            raise SnapshotExistsError(f"there is a snapshot {name!r} already", remedy="choose another name")

    def view(self, snapshot: Snapshot) -> SnapshotView:
        """What is told of it."""
        return SnapshotView(
            name=snapshot.name,
            created_at=snapshot.created_at,
            memory_mib=snapshot.spec.memory_mib,
            memory_bytes=snapshot.memory_bytes,
            disks={disk.name: disk.size_bytes for disk in snapshot.disks},
            host_bytes=_count_bytes(self.path / snapshot.name),
            processor=snapshot.processor,
            pause_ms=snapshot.pause_ms,
        )

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """An empty folder to be filled; removed again unless ``finish`` gave it its name.

        Raises ``SnapshotFullError`` or ``SnapshotBrokenError``.
        """
        half = self.path / f"{HALF}{name}"
        try:
            with explaining(self.path):
                self.path.parent.mkdir(mode=0o700, exist_ok=True)
                self.path.mkdir(mode=0o700, exist_ok=True)
                half.mkdir(mode=0o700)
                yield half
        finally:
            shutil.rmtree(half, ignore_errors=True)
            self._drop_empty()

    def finish(self, half: Path, snapshot: Snapshot) -> None:
        """Bring a whole snapshot to the disk and give it its name. Raises ``SnapshotFullError``."""
        with explaining(self.path):
            (half / DOCUMENT).write_text(snapshot.model_dump_json())
            for path in half.iterdir():
                sync(path)
            sync(half)
            half.rename(self.path / snapshot.name)
            sync(self.path)
            sync(self.path.parent)

    def remove(self, name: str) -> None:
        """Take its name and then its files away. Raises ``SnapshotNotFoundError``."""
        self.require(name)
        gone = self.path / f"{GONE}{name}"
        (self.path / name).rename(gone)
        sync(self.path)
        shutil.rmtree(gone)
        self._drop_empty()

    def sweep(self) -> list[str]:
        """Remove what was being made or removed when the service ended; returns the paths."""
        found = [path for path in self.path.iterdir() if path.name.startswith((HALF, GONE))]
        for path in found:
            shutil.rmtree(path)
        self._drop_empty()
        return [str(path) for path in found]

    def _drop_empty(self) -> None:
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def list_folders(root: Path) -> list[SnapshotFolder]:
    """Those of all VMs that have snapshots, whole or not."""
    return [SnapshotFolder(root, path.name) for path in root.iterdir()] if root.is_dir() else []


@contextmanager
def explaining(place: Path) -> Iterator[None]:
    """Turn what the file system refuses into ``SnapshotFullError`` or ``SnapshotBrokenError``."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in NO_SPACE:
            raise SnapshotFullError(
                f"there is no room for the snapshot: {where}: {error.strerror}", remedy="delete snapshots"
            ) from error
        raise SnapshotBrokenError(f"snapshot: {where}: {error.strerror}") from error


def _count_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * BLOCK_BYTES for path in folder.iterdir())
