"""What is told of pools and volumes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from duovisor.spec.names import DEFAULT_POOL, check_name
from duovisor.spec.vm import DiskFormat

__all__ = ["DEFAULT_POOL", "ImageFormat", "PoolKind", "PoolView", "VolumeFormat", "VolumeRef", "VolumeView"]


class PoolKind(StrEnum):
    """What a pool is on the host: a folder, one on NFS, or an LVM thin pool."""

    DIRECTORY = "directory"
    LVM_THIN = "lvm-thin"
    NFS = "nfs"


class VolumeFormat(StrEnum):
    """How a volume's bytes lie in its file."""

    RAW = "raw"
    QCOW2 = "qcow2"

    @property
    def disk_format(self) -> DiskFormat:
        """The same, as a disk's specification says it."""
        return DiskFormat(self.value)


class ImageFormat(StrEnum):
    """What can be uploaded."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHD = "vhd"
    VHDX = "vhdx"
    VDI = "vdi"

    @property
    def qemu_driver(self) -> str:
        """QEMU's name for it."""
        return "vpc" if self is ImageFormat.VHD else self.value


class VolumeState(StrEnum):
    """``missing``: its file is gone or is no plain file, or its pool is not there."""

    READY = "ready"
    CREATING = "creating"
    RESIZING = "resizing"
    DELETING = "deleting"
    MISSING = "missing"


class Model(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VolumeRef(Model):
    """A volume's pool and name."""

    pool: str
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> VolumeRef:
        """Read ``POOL/NAME``. Raises ``ValueError``."""
        pool, _, name = text.partition("/")
        return cls(pool=check_name(pool), name=check_name(name))


class PoolView(Model):
    """A pool; ``problem`` says why it cannot be used now, and then the sizes are null.

    ``free_metadata`` is the share of a thin pool's metadata that is free, from 0 to 1; without any, nothing
    more can be written.
    """

    name: str
    kind: PoolKind
    path: str
    problem: str = ""
    capacity_bytes: int | None
    free_bytes: int | None
    free_metadata: float | None = None
    volumes: int
    created_at: AwareDatetime


class VolumeView(Model):
    """A volume. ``size_bytes`` is what a guest sees, ``allocated_bytes`` what it takes on the host.

    ``base`` is what a linked clone is based on, ``clones`` are those based on it, ``vms`` the VMs whose
    definitions name it. ``sha256`` is that of the file as it is now, when it was computed since it changed.
    """

    pool: str
    name: str
    state: VolumeState
    format: VolumeFormat
    size_bytes: int
    allocated_bytes: int | None
    read_only: bool
    base: str | None
    clones: tuple[str, ...]
    vms: tuple[str, ...]
    path: str
    sha256: str | None
    created_at: AwareDatetime
