"""What can be asked of a volume, and what is known of its content."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING
from uuid import uuid4

from duovisor.controlling.formats.chain import CHAIN_MAX
from duovisor.controlling.storage.documents import VolumeDocument, VolumeIntent
from duovisor.controlling.storage.errors import VolumeRefusedError
from duovisor.controlling.storage.heads import SECTOR_BYTES
from duovisor.controlling.storage.steps import in_thread
from duovisor.controlling.vms.records import now
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from duovisor.controlling.storage.records import VolumeFormat, VolumeRef
    from duovisor.controlling.storage.volumes import Volume
    from duovisor.controlling.vms.records import Progress

MAX_BYTES = 1 << 50
READ_BYTES = 4 << 20


def build_document(volume_format: VolumeFormat, base: str | None = None) -> VolumeDocument:
    """A volume that is about to be made."""
    return VolumeDocument(
        uuid=str(uuid4()),
        format=volume_format,
        size_bytes=0,
        base=base,
        intent=VolumeIntent.CREATE,
        created_at=now(),
    )


def check_size(size_bytes: int) -> None:
    """Raises ``VolumeRefusedError`` for what no disk can have."""
    if not 0 < size_bytes <= MAX_BYTES or size_bytes % SECTOR_BYTES:
        raise VolumeRefusedError(
            f"a volume cannot have {size_bytes} bytes",
            remedy=f"a multiple of {SECTOR_BYTES}, up to {format_bytes(MAX_BYTES)}",
        )


def check_growth(volume: Volume, now_bytes: int, size_bytes: int) -> None:
    """Raises ``VolumeRefusedError`` when a volume cannot become this large."""
    if volume.document.read_only:
        raise VolumeRefusedError(f"volume {volume.ref} is read-only")
    if size_bytes <= now_bytes:
        raise VolumeRefusedError(
            f"volume {volume.ref} has {format_bytes(now_bytes)}; it can only become larger",
            remedy="what a smaller one would lose, only its guest knows",
        )


def check_depth(below: int, base: VolumeRef) -> None:
    """Raises ``VolumeRefusedError`` for a clone of a volume that has too many below it."""
    if below >= CHAIN_MAX:
        raise VolumeRefusedError(
            f"volume {base} is based on {below - 1} others, which is the most", remedy="make a full clone"
        )


def find_checksum(document: VolumeDocument, found: os.stat_result) -> str | None:
    """A file's checksum, if it is known and the file has not changed since."""
    kept = document.checksum
    if kept is None or (kept.modified_ns, kept.file_bytes) != (found.st_mtime_ns, found.st_size):
        return None
    return kept.sha256


async def hash_file(descriptor: int, progress: Progress) -> str:
    """The SHA-256 of an open file, from its beginning."""
    digest, done = hashlib.sha256(), 0
    size_bytes = os.fstat(descriptor).st_size
    while block := await in_thread(os.pread, descriptor, READ_BYTES, done):
        await in_thread(digest.update, block)
        done += len(block)
        progress(99 * done // max(size_bytes, 1), "reading")
    return digest.hexdigest()
