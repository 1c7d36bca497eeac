"""A kernel that the VMM loads itself: files of the host, or what one of the VM's disks has at each start."""

from __future__ import annotations

from pydantic import Field, model_validator

from duovisor.spec.model import SpecModel
from duovisor.spec.names import Text

SLOT_MAX = 11  # of a disk, see spec/vm.py


class KernelSpec(SpecModel):
    """A Linux kernel that the VMM loads itself, without firmware in between.

    With ``disk``, the number of one of the VM's disks, kernel and initial RAM disk are taken from that at
    each start, those that GRUB would start: an update in the guest counts from the VM's next start on. What
    the disk says of the command line goes before ``command_line``.

    ``found_arguments``, and with a ``disk`` also ``path`` and ``initrd``, are found at each start.
    """

    path: Text = ""
    initrd: Text | None = None
    disk: int | None = Field(default=None, ge=0, le=SLOT_MAX)
    command_line: Text = Field(default="", max_length=2047)  # COMMAND_LINE_SIZE of x86 Linux is 2048
    found_arguments: Text = Field(default="", max_length=2047)

    @model_validator(mode="after")
    def _check_source(self) -> KernelSpec:
        if not self.path and self.disk is None:
            raise ValueError("path is missing: name the kernel's file, or the disk that it is on (disk: 0)")
        if self.found_arguments and self.disk is None:
            raise ValueError("found_arguments are of a kernel on a disk; write command_line")
        return self

    @property
    def arguments(self) -> str:
        """The whole command line."""
        return f"{self.found_arguments} {self.command_line}".strip()

    def without_places(self) -> KernelSpec:
        """The same without what each start finds."""
        if self.disk is None:
            return self
        return self.model_copy(update={"path": "", "initrd": None, "found_arguments": ""})
