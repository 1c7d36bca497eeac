"""What the store keeps of VMs: definitions under ``/vms/NAME``, runs under ``/vm-runs/UUID``, autostart.

A definition is what a user wants; only users change it, and its revision is their ETag. A run is what
happened since the VM was first started, and what is about to be done to it: the *intent* is written before
the host is touched and goes with the outcome, so that who comes after a ``kill -9`` knows what was meant.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict

from duovisor.controlling.description import DeviceChange
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.vms.records import Autostart, Fault
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design, VirtualMachineSpec

VMS, RUNS, AUTOSTART_KEY = "/vms/", "/vm-runs/", "/host/autostart"
KEPT_FAULTS = 20


class Intent(StrEnum):
    """What is being done to a VM on the host; ``none`` at rest."""

    NONE = "none"
    START = "start"
    SHUTDOWN = "shutdown"
    STOP = "stop"
    SWITCH = "switch"
    SNAPSHOT = "snapshot"
    PLUG = "plug"


class VmDocument(BaseModel):
    """A VM's definition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str
    spec: VirtualMachineSpec
    autostart: Autostart
    created_at: AwareDatetime


class RunDocument(BaseModel):
    """A VM's latest run; ``state`` is ``running`` until its end is known.

    ``boot_id`` is the boot in which it was last started, ``ended_boot_id`` the one in which it ended.
    ``switching_to`` is the design that is meant by the intent ``switch``, and ``plugging`` the device that is
    meant by ``plug``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    uuid: str
    intent: Intent = Intent.NONE
    switching_to: Design | None = None
    plugging: DeviceChange | None = None
    state: State = State.DEFINED
    boot_id: str = ""
    ended_boot_id: str = ""
    ended_at: AwareDatetime | None = None
    faults: tuple[Fault, ...] = ()

    def changed(self, **changes: object) -> RunDocument:
        """The same run with other values."""
        return self.model_copy(update=changes)

    def at_rest(self) -> RunDocument:
        """The same run with nothing being done to it."""
        return self.changed(intent=Intent.NONE, switching_to=None, plugging=None)

    def with_fault(self, fault: Fault) -> RunDocument:
        """The same run with one more fault; only the latest are kept."""
        return self.changed(faults=(*self.faults, fault)[-KEPT_FAULTS:])


class AutostartDocument(BaseModel):
    """The boot whose autostart is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: str


VM_KIND = DocumentKind("vm", VmDocument)
RUN_KIND = DocumentKind("vm-run", RunDocument)
AUTOSTART_KIND = DocumentKind("autostart", AutostartDocument)
