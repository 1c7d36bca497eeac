"""What of the machine a reader of the report must know, and what tells it from another one."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from duovisor import __version__
from duovisor.hardware.accelerator import decide_accelerator
from duovisor.hardware.processors import read_processors
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities

ROOT = Path("/")


class HostFacts(BaseModel):
    """This machine and its programs, as they were when the comparison began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    cpus: int
    memory_mib: int
    kernel: str
    accelerator: Accelerator
    accelerator_reason: str
    qemu: str
    q35_machine: str
    io_uring: bool
    duovisor: str
    python: str
    is_root: bool

    @property
    def identity(self) -> tuple[str, ...]:
        """What must be the same for samples to be put together."""
        return (self.processor, str(self.cpus), self.accelerator, self.qemu, self.duovisor)

    def describe(self) -> str:
        """The machine in one line."""
        return (
            f"{self.processor}, {self.cpus} CPUs, {self.memory_mib / 1024:.0f} GiB; guests on "
            f"{self.accelerator.upper()}; QEMU {self.qemu}; duovisor {self.duovisor}"
        )


def build_facts(capabilities: HostCapabilities, root: Path = ROOT) -> HostFacts:
    """The facts of this host. Raises what asking QEMU met."""
    _, qemu = capabilities.require_qemu()
    decision = decide_accelerator(Accelerator.AUTO, capabilities.kvm)
    return HostFacts(
        processor=" ".join(read_processors(root).model.split()) or platform.machine(),
        cpus=capabilities.cpus,
        memory_mib=capabilities.memory_total_mib,
        kernel=os.uname().release,
        accelerator=decision.accelerator,
        accelerator_reason=decision.reason,
        qemu=qemu.version_text,
        q35_machine=qemu.q35_machine,
        io_uring=qemu.io_uring,
        duovisor=__version__,
        python=platform.python_version(),
        is_root=capabilities.is_root,
    )
