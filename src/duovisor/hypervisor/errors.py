"""Errors of the hypervisor layer; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class HypervisorError(DuovisorError):
    """Root of what the hypervisor layer can raise."""

    code = "hypervisor"


class PlanError(HypervisorError):
    """The specification is sound, but this design or this QEMU cannot carry it out."""

    code = "plan-refused"


class WrongStateError(HypervisorError):
    """The life cycle does not allow this from the state the VM is in."""

    code = "wrong-state"


class VmmStartError(HypervisorError):
    """The VMM process ended or fell silent before the guest could run; its last words are in the message."""

    code = "vmm-start-failed"


class VmmGoneError(HypervisorError):
    """The VMM process is not there any more."""

    code = "vmm-gone"


class QmpError(HypervisorError):
    """The VMM refused a command over QMP."""

    code = "qmp-refused"


class UnplugTimeoutError(HypervisorError):
    """The guest did not let go of a device in time; it still has it."""

    code = "unplug-timeout"


class UnplugRefusedError(HypervisorError):
    """The guest said that it does not let go of a device."""

    code = "unplug-refused"


class QmpTimeoutError(HypervisorError):
    """The VMM did not answer in time; whether the command took effect is not known."""

    code = "outcome-unknown"
