"""CD-ROM drives, and from what a guest starts."""

from __future__ import annotations

from enum import StrEnum

from pydantic import model_validator

from duovisor.spec.model import SpecModel
from duovisor.spec.names import Text, VolumeName

MAX_CDROMS = 4  # q35's SATA controller has six ports


class BootDevice(StrEnum):
    """A kind of device from which firmware starts a guest."""

    DISK = "disk"
    CDROM = "cdrom"
    NETWORK = "network"


BOOT_ORDER = (BootDevice.DISK, BootDevice.CDROM)


class CdromSpec(SpecModel):
    """A CD-ROM drive, empty or with an ISO image in it: a file, or a raw volume (``POOL/NAME``) of a pool.

    A volume takes the place of ``path``, which is found at each start.
    """

    path: Text = ""
    volume: VolumeName | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no medium is in it."""
        return not self.path and self.volume is None

    @property
    def is_found(self) -> bool:
        """Whether its path is not given but found at each start."""
        return self.volume is not None

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: object) -> object:
        """A text alone is the path."""
        return {"path": value} if isinstance(value, str) else value
