"""What the VM manager tells: definitions, states, events, and what it found when it started.

A *record* is what is wanted and is stored, a *status* is what is; they never mix.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from duovisor.controlling.description import Duty
from duovisor.controlling.supervision.records import DriverStatus
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Accelerator, Design, VirtualMachineSpec, VmmKind

T = TypeVar("T")
Progress = Callable[[int, str], None]
"""Told how far an action is, in percent, and what it is doing."""


def ignore_progress(percent: int, message: str) -> None:
    """A ``Progress`` for who does not care."""


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


class Model(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Autostart(Model):
    """Whether a VM starts with the host: lower ``order`` first, then ``delay_s`` seconds of rest."""

    enabled: bool = False
    order: int = Field(default=0, ge=0, le=9999)
    delay_s: float = Field(default=0.0, ge=0, le=3600, allow_inf_nan=False)


class VmRecord(Model):
    """A VM as it is wanted; ``revision`` is what a change must have seen (the ETag)."""

    name: str
    uuid: str
    spec: VirtualMachineSpec
    autostart: Autostart
    created_at: AwareDatetime
    revision: int


class Fault(Model):
    """Something that went wrong with a VM."""

    at: AwareDatetime
    message: str


class ProcessState(StrEnum):
    """Whether a process of a running VM is there."""

    RUNNING = "running"
    ENDED = "ended"


class ProcessStatus(Model):
    """One process of a running VM; ``device`` is what it serves, empty for the VMM.

    ``duty``: of a driver, whether it serves or stands by.
    """

    role: str
    pid: int
    device: str
    state: ProcessState
    duty: Duty = Duty.NONE


class CardAddress(Model):
    """The address that a network gives to a card, ``nic0`` for example."""

    card: str
    network: str
    mac: str
    address: str


class VmStatus(Model):
    """A VM as it is. ``action`` is what is being done to it; ``faults`` are the latest, oldest first.

    ``addresses`` are those of its cards, where they are known.

    ``restart_needed``: the definition was changed since the VM started. ``full_disks``: it stands still until
    there is room on the host for what its guest writes to these. ``memory_note``: what is to be known of
    memory that came while it ran; empty when its guest has taken all of it.
    """

    state: State
    accelerator: Accelerator | None = None
    accelerator_reason: str = ""
    vmm: VmmKind | None = None
    vmm_reason: str = ""
    pid: int | None = None
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    processes: tuple[ProcessStatus, ...] = ()
    drivers: tuple[DriverStatus, ...] = ()
    addresses: tuple[CardAddress, ...] = ()
    faults: tuple[Fault, ...] = ()
    full_disks: tuple[str, ...] = ()
    memory_note: str = ""
    action: str = ""
    restart_needed: bool = False


class VmView(Model):
    """A VM: what is wanted and what is."""

    record: VmRecord
    status: VmStatus


class Page(Model, Generic[T]):
    """Part of a list; ``after`` is what to ask the next part with, ``None`` at the end."""

    items: tuple[T, ...]
    after: str | None = None


class EventKind(StrEnum):
    """What happened to a VM."""

    CREATED = "created"
    UPDATED = "updated"
    RENAMED = "renamed"
    DELETED = "deleted"
    STARTED = "started"
    START_FAILED = "start-failed"
    PAUSED = "paused"
    RESUMED = "resumed"
    RESET = "reset"
    FROZEN = "frozen"
    THAWED = "thawed"
    MEDIUM_CHANGED = "medium-changed"
    NVRAM_RESET = "nvram-reset"
    STOPPED = "stopped"
    CRASHED = "crashed"
    SWITCHED = "switched"
    SWITCH_FAILED = "switch-failed"
    VMM_UPDATED = "vmm-updated"
    VMM_UPDATE_FAILED = "vmm-update-failed"
    SNAPSHOT_TAKEN = "snapshot-taken"
    SNAPSHOT_FAILED = "snapshot-failed"
    SNAPSHOT_RESTORED = "snapshot-restored"
    SNAPSHOT_DELETED = "snapshot-deleted"
    FAULT = "fault"
    DRIVER_DIED = "driver-died"
    DRIVER_HUNG = "driver-hung"
    DRIVER_RECOVERED = "driver-recovered"
    DRIVER_REPLACED = "driver-replaced"
    DRIVER_FAILED = "driver-failed"
    FORMAT_DIED = "format-died"
    FORMAT_RECOVERED = "format-recovered"
    LIMITED = "limited"
    PROCESSORS_SET = "processors-set"
    MEMORY_SET = "memory-set"
    DEVICE_ATTACHED = "device-attached"
    DEVICE_DETACHED = "device-detached"
    DEVICE_GONE = "device-gone"
    DISK_FULL = "disk-full"
    DISK_ROOM = "disk-room"
    MEMORY_LOADED = "memory-loaded"
    MEMORY_LOST = "memory-lost"
    ADOPTED = "adopted"
    ROLLED_BACK = "rolled-back"


class VmEvent(Model):
    """Something that happened to a VM, whoever caused it."""

    kind: EventKind
    name: str
    uuid: str
    message: str = ""
    at: AwareDatetime = Field(default_factory=now)


class MoveResult(Model):
    """A running VM has another VMM: the old one and the new one, and what it took.

    ``pause_ms`` is how long the guest's processors stood still, ``step_ms`` how long each step took, those
    from ``pause`` to ``go`` within the pause; ``stream_bytes`` is the state of the devices, all that was
    moved. ``vmm`` is the program, the same before and after; versions are as it gives them, QEMU's with the
    distribution's package.
    """

    vmm: VmmKind
    old_design: Design
    new_design: Design
    old_version: str
    new_version: str
    old_pid: int
    new_pid: int
    pause_ms: float
    total_ms: float
    stream_bytes: int
    step_ms: dict[str, float]


class RecoveryReport(Model):
    """What the manager found on the host when it started, and did about it; VMs by name.

    ``adopted`` run on; ``ended`` had ended while nobody looked; ``finished`` are interrupted stops and
    switches that were completed, ``rolled_back`` interrupted starts and switches that were undone;
    ``removed`` are leftovers of no VM; ``problems`` are what a person must look at.
    """

    adopted: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    host_restarted: bool = False
