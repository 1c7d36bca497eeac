"""What is kept of a snapshot beside its files, and what is told of it."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from duovisor.spec.vm import VirtualMachineSpec

FORMAT = 1


class Model(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedDisk(Model):
    """A disk: its file in the snapshot, or none of a read-only one, which must then be unchanged.

    ``changed_ns`` is when a read-only one was last changed (nanoseconds since 1970).
    """

    name: str
    file: str | None
    size_bytes: int
    changed_ns: int = 0


class Snapshot(Model):
    """``snapshot.json``: a VM's devices, memory and disks of one moment.

    ``spec`` is what ran, with no places of volumes. Registers fit processors of ``vendor`` and ``processor``
    that have ``flags``. ``pause_ms`` is how long the guest stood still for it.
    """

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    name: str
    created_at: AwareDatetime
    spec: VirtualMachineSpec
    vendor: str
    processor: str
    flags: tuple[str, ...]
    disks: tuple[SavedDisk, ...]
    memory_bytes: int
    pause_ms: float


class SnapshotView(Model):
    """A snapshot; ``memory_bytes`` is what the guest had used of its memory, ``host_bytes`` what it takes."""

    name: str
    created_at: AwareDatetime
    memory_mib: int
    memory_bytes: int
    disks: dict[str, int]
    host_bytes: int
    processor: str
    pause_ms: float


class Journal(Model):
    """``.restore.json``: which new files take the place of which disks.

    Once it is ``decided`` that is finished whatever happens; before, the new files are removed.
    """

    decided: bool
    files: tuple[tuple[str, str], ...]
