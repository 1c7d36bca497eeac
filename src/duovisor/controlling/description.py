"""What a running VM's run folder tells other commands: ``machine.json``, written by the VM's owner."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from duovisor.controlling.errors import MachineNotFoundError
from duovisor.controlling.run_folder import has_owner
from duovisor.spec.vm import Accelerator, VirtualMachineSpec

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.machine import Machine

FILE = "machine.json"


class ProcessDescription(BaseModel):
    """One process of a VM; ``pid`` is the program's own, ``device`` what it serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    pid: int
    device: str = ""


class MachineDescription(BaseModel):
    """A running VM as its owner sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: VirtualMachineSpec
    accelerator: Accelerator
    accelerator_reason: str
    owner_pid: int
    memory_file: str
    started_at: float  # seconds since 1970
    processes: tuple[ProcessDescription, ...]


def describe_machine(machine: Machine) -> MachineDescription:
    """The description of a machine whose processes run."""
    assert machine.vmm.process is not None
    vmm = ProcessDescription(role="vmm", pid=machine.vmm.process.program_pid())
    partitions = [
        ProcessDescription(role=process.role, pid=process.program_pid(), device=name)
        for name, process in machine.partitions.items()
    ]
    return MachineDescription(
        spec=machine.spec,
        accelerator=machine.decision.accelerator,
        accelerator_reason=machine.decision.reason,
        owner_pid=os.getpid(),
        memory_file=str(machine.vmm.plan.memory_file),
        started_at=time.time(),
        processes=(vmm, *partitions),
    )


def write_description(machine: Machine) -> None:
    """Write the machine's description into its run folder, whole or not at all."""
    fresh = machine.run_dir / f"{FILE}.new"
    fresh.write_text(describe_machine(machine).model_dump_json(indent=2))
    fresh.replace(machine.run_dir / FILE)


def list_running(vms: Path) -> list[str]:
    """The names of the VMs that run, sorted."""
    if not vms.is_dir():
        return []
    return sorted(folder.name for folder in vms.iterdir() if (folder / FILE).exists() and has_owner(folder))


def read_description(vms: Path, name: str) -> MachineDescription:
    """The description of a running VM. Raises ``MachineNotFoundError``."""
    folder = vms / name
    try:
        if has_owner(folder):
            return MachineDescription.model_validate_json((folder / FILE).read_text())
    except (OSError, ValidationError) as error:
        raise MachineNotFoundError(f"VM {name!r} is just starting or ending") from error
    names = ", ".join(list_running(vms)) or "none"
    raise MachineNotFoundError(f"no VM named {name!r} runs", remedy=f"running: {names}")
