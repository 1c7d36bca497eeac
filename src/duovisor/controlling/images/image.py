"""What an image is: a folder with files and ``image.json``, which describes them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DESCRIPTION_FILE = "image.json"

# a plain name: nothing in a description may lead out of the image's folder
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class ImageModel(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageDisk(ImageModel):
    """A raw disk of the image; the guest finds it by its serial."""

    file: FileName
    read_only: bool = False
    serial: str = ""


class Image(ImageModel):
    """A guest image; ``folder`` is where it was found and is not written to the description.

    Either it starts from its ``kernel``, or from the disk that is ``volume`` (``POOL/NAME``), of which VMs
    get clones; that may have a kernel besides, for who starts without firmware. ``disk_bytes`` is what the
    volume takes on the host, which never changes; ``user`` is who logs in, and
    ``guest_agent`` says that QEMU's agent is in it.
    """

    format_version: Literal[1] = 1
    name: str
    description: str
    kernel: FileName | None = None
    initrd: FileName | None = None
    command_line: str = ""
    disks: tuple[ImageDisk, ...] = ()
    volume: str | None = None
    disk_bytes: int = 0
    user: str = ""
    guest_agent: bool = False
    kernel_version: str = ""
    source: str
    recipe: str
    built_at: datetime
    sha256: dict[str, str]
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _check_start(self) -> Image:
        if self.volume is None and self.kernel is None:
            raise ValueError("it has neither a kernel nor a volume")
        if (self.kernel is None) != (self.initrd is None):
            raise ValueError("kernel and initrd belong together")
        return self

    @property
    def kernel_path(self) -> Path:
        """Of one that has a kernel."""
        assert self.kernel is not None
        return self.folder / self.kernel

    @property
    def initrd_path(self) -> Path:
        """Of one that has a kernel."""
        assert self.initrd is not None
        return self.folder / self.initrd

    @property
    def disk_paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / disk.file for disk in self.disks)

    @property
    def file_paths(self) -> tuple[Path, ...]:
        boot = () if self.kernel is None else (self.kernel_path, self.initrd_path)
        return (*boot, *self.disk_paths)

    @property
    def size_bytes(self) -> int:
        """What the files take on the host's disk; a sparse file counts for what is written."""
        return self.disk_bytes + sum(path.stat().st_blocks * 512 for path in self.file_paths)
