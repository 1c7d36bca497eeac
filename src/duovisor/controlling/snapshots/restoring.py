"""Brings a VM's disks back to a snapshot: new files beside theirs first, which take their places at once.

What is to be renamed is written down before: who comes after a ``kill -9`` finishes it or removes the new
files, so a VM has all its disks as they were, or all as they are in the snapshot. These functions may block.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import ValidationError

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.snapshots.copying import copy_content
from duovisor.controlling.snapshots.documents import Journal
from duovisor.controlling.snapshots.errors import SnapshotBrokenError, SnapshotRefusedError
from duovisor.controlling.snapshots.folder import MEMORY, STATE
from duovisor.controlling.storage.backend import sync

if TYPE_CHECKING:
    from duovisor.controlling.snapshots.copying import Follow
    from duovisor.controlling.snapshots.documents import SavedDisk, Snapshot
    from duovisor.hardware.processors import Processors
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

JOURNAL, FRESH = ".restore.json", ".duovisor-restore-"


def check_processors(snapshot: Snapshot, here: Processors) -> None:
    """Refuse a snapshot of another kind of processor; pure. Raises ``SnapshotRefusedError``."""
    if (snapshot.vendor, snapshot.processor) != (here.vendor, here.model):
        raise SnapshotRefusedError(
            f"snapshot {snapshot.name} was taken on {snapshot.processor or snapshot.vendor}; this host has "
            f"{here.model or here.vendor}",
            remedy="its guest uses what that processor has; restore it on a host with the same",
        )
    if missing := sorted(set(snapshot.flags) - set(here.flags)):
        raise SnapshotRefusedError(
            f"this host's processors do not offer {', '.join(missing)} any more, which snapshot "
            f"{snapshot.name} was taken with",
            remedy="undo the change of kernel, firmware or hypervisor that took it away",
        )


def check_files(folder: Path, snapshot: Snapshot) -> None:
    """Raises ``SnapshotBrokenError`` unless each file is there with its size."""
    sizes = {MEMORY: snapshot.spec.memory_mib << 20}
    sizes |= {disk.file: disk.size_bytes for disk in snapshot.disks if disk.file is not None}
    for name in (STATE, *sizes):
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise SnapshotBrokenError(f"snapshot {snapshot.name}: {name}: {error.strerror}") from error
        if found != sizes.get(name, found) or not found:
            raise SnapshotBrokenError(f"snapshot {snapshot.name}: {folder / name} has {found} bytes")


def check_disks(snapshot: Snapshot, spec: VirtualMachineSpec) -> None:
    """Refuse where a disk is no longer what it was; ``spec`` has the places of volumes.

    Raises ``SnapshotRefusedError``.
    """
    for saved, disk in zip(snapshot.disks, spec.disks, strict=True):
        if not disk.path:
            continue
        try:
            found = os.stat(disk.path)
        except OSError as error:
            raise SnapshotRefusedError(f"{saved.name}: {disk.path}: {error.strerror}") from error
        if found.st_size != saved.size_bytes:
            raise SnapshotRefusedError(
                f"{saved.name}: {disk.path} has {found.st_size} bytes now; it had {saved.size_bytes} when "
                f"snapshot {snapshot.name} was taken"
            )
        if saved.file is None and found.st_mtime_ns != saved.changed_ns:
            raise SnapshotRefusedError(
                f"{saved.name}: {disk.path}, which is read-only, was changed since snapshot {snapshot.name} "
                "was taken",
                remedy="put back what it was, with its time (cp -p)",
            )


def bring_disks_back(vm_folder: Path, snapshot: Snapshot, spec: VirtualMachineSpec, follow: Follow) -> None:
    """Give each disk that a guest writes to the content that it has in the snapshot.

    Raises ``DiskLockedError`` while somebody uses one, ``OSError``; all are as they were then.
    """
    journal = vm_folder / JOURNAL
    pairs = [
        (disk, saved, Path(os.path.realpath(disk.path)))
        for saved, disk in zip(snapshot.disks, spec.disks, strict=True)
        if saved.file is not None
    ]
    mark = uuid4().hex
    files = tuple((str(path.parent / f"{FRESH}{mark}-{saved.name}"), str(path)) for _, saved, path in pairs)
    if not files:
        return
    with contextlib.ExitStack() as held:
        _write(journal, Journal(decided=False, files=files))
        try:
            for (disk, saved, path), (fresh, _) in zip(pairs, files, strict=True):
                _lock(disk, path, held)
                _copy(vm_folder / snapshot.name / _file_of(saved), Path(fresh), path, follow)
            _write(journal, Journal(decided=True, files=files))
        except BaseException:
            settle(vm_folder)
            raise
        settle(vm_folder)


def settle(vm_folder: Path) -> bool | None:
    """Finish or undo what a journal says; whether it was finished, None without one. Raises ``OSError``."""
    journal = vm_folder / JOURNAL
    journal.with_name(f"{JOURNAL}.new").unlink(missing_ok=True)
    try:
        left = Journal.model_validate_json(journal.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SnapshotBrokenError(f"{journal} cannot be read; it was left alone") from error
    for fresh, path in left.files:
        if left.decided:
            with contextlib.suppress(FileNotFoundError):  # renamed already
                os.rename(fresh, path)
        else:
            Path(fresh).unlink(missing_ok=True)
    for folder in {Path(path).parent for _, path in left.files}:
        sync(folder)
    journal.unlink()
    sync(vm_folder)
    return left.decided


def _write(journal: Path, content: Journal) -> None:
    half = journal.with_name(f"{JOURNAL}.new")
    half.write_text(content.model_dump_json())
    sync(half)
    half.rename(journal)
    sync(journal.parent)


def _lock(disk: DiskSpec, path: Path, held: contextlib.ExitStack) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise DiskFileError(f"cannot open disk image {disk.path}: {error.strerror}") from error
    held.callback(os.close, descriptor)
    lock_disk(descriptor, str(path), read_only=False)


def _copy(saved: Path, fresh: Path, old: Path, follow: Follow) -> None:
    """A copy that belongs to whom the old file belongs."""
    owner = old.stat()
    source = os.open(saved, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(source, target, follow)
            os.fchown(target, owner.st_uid, owner.st_gid)
            os.fchmod(target, owner.st_mode & 0o7777)
            os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _file_of(saved: SavedDisk) -> str:
    assert saved.file is not None
    return saved.file
