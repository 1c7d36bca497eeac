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
from duovisor.controlling.storage.records import VolumeFormat
from duovisor.controlling.storage.steps import in_thread
from duovisor.controlling.vms.records import now
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from duovisor.controlling.storage.backend import Backend, Look
    from duovisor.controlling.storage.records import VolumeRef
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


def choose_format(
    backend: Backend, wanted: VolumeFormat | None, usual: VolumeFormat | None = None
) -> VolumeFormat:
    """What a new volume is to be: what is wanted, or usual. Raises ``VolumeRefusedError``."""
    if wanted is None:
        return usual if usual in backend.formats else backend.formats[0]
    if wanted not in backend.formats:
        raise VolumeRefusedError(
            f"pool {backend.pool} is {backend.kind}, where volumes are {' or '.join(backend.formats)}, "
            f"not {wanted}",
            remedy="leave the format out, or use another pool",
        )
    return wanted


def check_snapshot(source: VolumeRef, ref: VolumeRef, wanted: VolumeFormat | None) -> None:
    """Raises ``VolumeRefusedError`` for a linked clone that a snapshot in the pool cannot be."""
    if source.pool != ref.pool:
        raise VolumeRefusedError(
            f"a linked clone of {source} is a snapshot, which can only be in the same pool, {source.pool}",
            remedy="make a full clone",
        )
    if wanted not in (None, VolumeFormat.RAW):
        raise VolumeRefusedError(f"a linked clone of {source} is a snapshot, and raw as that is")


def check_linked(below: int, base: VolumeRef, wanted: VolumeFormat | None) -> None:
    """Raises ``VolumeRefusedError`` for a linked clone that cannot be, of one with so many below it."""
    if wanted is VolumeFormat.RAW:
        raise VolumeRefusedError("a linked clone is qcow2; a raw one would have to be full")
    if below >= CHAIN_MAX:
        raise VolumeRefusedError(
            f"volume {base} is based on {below - 1} others, which is the most", remedy="make a full clone"
        )


def find_checksum(document: VolumeDocument, found: Look) -> str | None:
    """A file's checksum, if it is known and the file has not changed since."""
    kept = document.checksum
    if kept is None or (kept.modified_ns, kept.file_bytes) != (found.modified_ns, found.file_bytes):
        return None
    return kept.sha256


async def hash_file(descriptor: int, progress: Progress) -> str:
    """The SHA-256 of an open file, from its beginning."""
    digest, done = hashlib.sha256(), 0
    size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
    while block := await in_thread(os.pread, descriptor, READ_BYTES, done):
        await in_thread(digest.update, block)
        done += len(block)
        progress(99 * done // max(size_bytes, 1), "reading")
    return digest.hexdigest()
