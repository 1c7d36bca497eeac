"""What a VM's run folder tells: ``machine.json``, written by its owner before each step of a start.

It is for other commands, which look at running VMs, and for the owner's successor: whatever is named here
may be on the host, and nothing else of this VM is. So it names each process before its program begins.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from duovisor.controlling.errors import MachineNotFoundError
from duovisor.controlling.run_folder import has_owner, list_run_folders
from duovisor.hypervisor.plan import LaunchPlan
from duovisor.process_identity import ProcessIdentity, is_living, read_children
from duovisor.spec.cdrom import CdromSpec
from duovisor.spec.vm import Accelerator, DiskSpec, NicSpec, VirtualMachineSpec, VmmKind

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine
    from duovisor.process import Process

FILE = "machine.json"
VMM_ROLE = "vmm"


class Phase(StrEnum):
    """How far a start has come; a VM that was ``running`` once can be adopted."""

    STARTING = "starting"
    RUNNING = "running"


class Duty(StrEnum):
    """What a driver partition was told to do for its device."""

    NONE = ""
    ACTIVE = "active"
    SPARE = "spare"


class ProcessDescription(BaseModel):
    """One process of a VM; ``pid`` is the program's own, ``device`` what it serves.

    A driver partition has a ``duty``, and listens to orders on the socket ``control`` in the run folder. A
    format process makes a disk of ``capacity_bytes`` of its image.

    ``watched_pid`` is the process that was started, in a sandbox bubblewrap's; with ``start_ticks`` it is
    told from a later process of the same number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    pid: int
    device: str = ""
    watched_pid: int
    start_ticks: int
    sandboxed: bool
    argv: tuple[str, ...]
    log: str
    duty: Duty = Duty.NONE
    control: str = ""
    capacity_bytes: int = 0

    @property
    def is_vmm(self) -> bool:
        return self.role == VMM_ROLE

    @property
    def identity(self) -> ProcessIdentity:
        return ProcessIdentity(self.watched_pid, self.start_ticks)


class PlanDescription(BaseModel):
    """What of a launch plan is needed after the launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[str, ...]
    sockets: tuple[str, ...]
    channels: tuple[str, ...]
    bound: tuple[str, ...] = ()
    modules_mib: tuple[int, ...] = ()


class DeviceChange(BaseModel):
    """A device that is just being plugged in, with what it is to be, or out; or what comes into a drive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    disk: DiskSpec | None = None
    nic: NicSpec | None = None
    cdrom: CdromSpec | None = None


class IncarnationDescription(BaseModel):
    """One VMM of a VM with what serves its devices, in the folder ``number`` of the run folder.

    ``full`` names disks that hold the VM until there is room for them. The medium of ``changing_drive`` is
    just being changed: it is to have what ``spec`` says.

    ``spec`` is the VM's, with the design of this incarnation; ``vmm`` is never ``auto``. Once it
    runs, the VMM is its first process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    spec: VirtualMachineSpec
    vmm: VmmKind = VmmKind.QEMU
    vmm_reason: str = ""
    plan: PlanDescription
    processes: tuple[ProcessDescription, ...] = ()
    change: DeviceChange | None = None
    changing_drive: int | None = None
    full: tuple[str, ...] = ()

    def find_partitions(self, device: str) -> list[ProcessDescription]:
        """The driver partitions of a device."""
        return [each for each in self.processes if each.device == device and each.control]


class MachineDescription(BaseModel):
    """A VM that runs, or was about to, as its owner sees it.

    ``uuid`` is empty for a VM in the foreground. ``other`` is there while the VM moves: the incarnation with
    the higher number succeeds the one with the lower, and until that is decided the lower one is ``current``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str
    phase: Phase
    accelerator: Accelerator
    accelerator_reason: str
    owner_pid: int
    memory_file: str
    started_at: float  # seconds since 1970
    current: IncarnationDescription
    other: IncarnationDescription | None = None

    @property
    def spec(self) -> VirtualMachineSpec:
        return self.current.spec

    @property
    def processes(self) -> tuple[ProcessDescription, ...]:
        return self.current.processes

    @property
    def incarnations(self) -> tuple[IncarnationDescription, ...]:
        """The one that runs, and the other while the VM moves."""
        return (self.current,) if self.other is None else (self.current, self.other)

    def build_plan(self, incarnation: IncarnationDescription) -> LaunchPlan:
        """The launch plan as it was carried out; its sandbox is up and no longer planned."""
        return LaunchPlan(
            name=self.spec.name,
            design=incarnation.spec.design,
            accelerator=self.accelerator,
            argv=incarnation.plan.argv,
            sockets=incarnation.plan.sockets,
            channels=incarnation.plan.channels,
            bound=incarnation.plan.bound,
            memory_file=Path(self.memory_file),
            memory_mib=self.spec.memory_mib,
            sandbox=None,
            modules_mib=incarnation.plan.modules_mib,
        )


def describe_machine(machine: Machine) -> MachineDescription:
    """The description of a machine whose processes run."""
    return machine.description


def describe_plan(plan: LaunchPlan) -> PlanDescription:
    """The description of a plan that is carried out."""
    return PlanDescription(
        argv=plan.argv,
        sockets=plan.sockets,
        channels=plan.channels,
        bound=plan.bound,
        modules_mib=plan.modules_mib,
    )


def describe_process(process: Process, device: str = "") -> ProcessDescription:
    """The description of a process that was just started, or runs."""
    return ProcessDescription(
        role=process.role,
        pid=process.program_pid(),
        device=device,
        watched_pid=process.pid,
        start_ticks=process.identity.start_ticks,
        sandboxed=process.sandboxed,
        argv=process.argv,
        log=process.log.name,
    )


def find_program(process: ProcessDescription) -> ProcessDescription:
    """The same process with the program's own number, which bubblewrap's child has only after a moment."""
    if not process.sandboxed:
        return process
    pid = next(iter(read_children(process.watched_pid)), process.watched_pid)
    return process.model_copy(update={"pid": pid})


def is_alive(machine: MachineDescription) -> bool:
    """Whether any process of the machine is there."""
    return any(is_living(process.identity) for each in machine.incarnations for process in each.processes)


def write_description(folder: Path, machine: MachineDescription) -> None:
    """Write the description into the VM's run folder, whole or not at all."""
    fresh = folder / f"{FILE}.{os.getpid()}"
    fresh.write_text(machine.model_dump_json(indent=2))
    fresh.replace(folder / FILE)


def load_description(folder: Path) -> MachineDescription | None:
    """What a run folder tells; ``None`` when nothing was written yet, or by another duovisor."""
    try:
        return MachineDescription.model_validate_json((folder / FILE).read_text())
    except (OSError, ValidationError):
        return None


def list_running(vms: Path) -> list[str]:
    """The names of the VMs that run, sorted."""
    return [name for name in list_run_folders(vms) if _find_running(vms / name) is not None]


def read_description(vms: Path, name: str) -> MachineDescription:
    """The description of a running VM. Raises ``MachineNotFoundError``."""
    found = _find_running(vms / name)
    if found is not None:
        return found
    if has_owner(vms / name):
        raise MachineNotFoundError(f"VM {name!r} is just starting or ending")
    names = ", ".join(list_running(vms)) or "none"
    raise MachineNotFoundError(f"no VM named {name!r} runs", remedy=f"running: {names}")


def _find_running(folder: Path) -> MachineDescription | None:
    machine = load_description(folder)
    return machine if machine and machine.phase is Phase.RUNNING and is_alive(machine) else None
