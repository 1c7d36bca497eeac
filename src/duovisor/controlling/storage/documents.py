"""What the store keeps: pools under ``/pools/NAME``, volumes under ``/volumes/POOL/NAME``.

A volume's *intent* is written before its file is touched and goes with the outcome, so that who comes after
a ``kill -9`` knows what was meant.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime  # noqa: TC002  # pydantic reads the annotation at run time

from duovisor.controlling.storage.records import Model, PoolKind, VolumeFormat
from duovisor.controlling.store.documents import DocumentKind

POOLS, VOLUMES = "/pools/", "/volumes/"


class VolumeIntent(StrEnum):
    """What is being done to a volume's file; ``none`` at rest."""

    NONE = "none"
    CREATE = "create"
    RESIZE = "resize"
    DELETE = "delete"


class PoolDocument(Model):
    """A pool; ``path`` is its folder, without symlinks."""

    type: PoolKind
    path: str
    created_at: AwareDatetime


class Checksum(Model):
    """A file's SHA-256, and by what it is told that the file has not changed since."""

    sha256: str
    modified_ns: int
    file_bytes: int


class VolumeDocument(Model):
    """A volume; ``base`` is ``POOL/NAME`` of what a linked clone is based on."""

    uuid: str
    format: VolumeFormat
    size_bytes: int
    read_only: bool = False
    base: str | None = None
    checksum: Checksum | None = None
    intent: VolumeIntent = VolumeIntent.NONE
    created_at: AwareDatetime

    def changed(self, **changes: object) -> VolumeDocument:
        """The same volume with other values."""
        return self.model_copy(update=changes)


POOL_KIND = DocumentKind("pool", PoolDocument)
VOLUME_KIND = DocumentKind("volume", VolumeDocument)
