"""What can be done to a VM, and from which state."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from duovisor.controlling.vms.records import VmView


class Action(StrEnum):
    """``shutdown`` asks the guest; ``stop`` pulls the plug."""

    START = "start"
    SHUTDOWN = "shutdown"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    SWITCH = "switch"
    UPDATE_VMM = "update-vmm"
    FREEZE = "fsfreeze"
    THAW = "fsthaw"
    ATTACH_DISK = "attach-disk"
    ATTACH_NIC = "attach-nic"
    DETACH_DISK = "detach-disk"
    DETACH_NIC = "detach-nic"

    @property
    def verb(self) -> str:
        """As what is done to a VM: ``cannot … web``."""
        return _VERBS.get(self, self.value)


_VERBS = {
    Action.UPDATE_VMM: "update the VMM of",
    Action.FREEZE: "freeze the file systems of",
    Action.THAW: "thaw the file systems of",
    Action.ATTACH_DISK: "attach a disk to",
    Action.ATTACH_NIC: "attach a NIC to",
    Action.DETACH_DISK: "detach a disk from",
    Action.DETACH_NIC: "detach a NIC from",
}
_NOT_RUNNING = frozenset({State.DEFINED, State.STOPPED, State.CRASHED})
_LIVING = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING})

ALLOWED: dict[Action, frozenset[State]] = {
    Action.START: _NOT_RUNNING,
    Action.SHUTDOWN: frozenset({State.RUNNING, State.STOPPING}),
    Action.STOP: _LIVING,
    Action.PAUSE: frozenset({State.RUNNING}),
    Action.RESUME: frozenset({State.PAUSED}),
    Action.RESET: frozenset({State.RUNNING, State.PAUSED}),
    Action.SWITCH: _NOT_RUNNING | {State.RUNNING},
    Action.UPDATE_VMM: frozenset({State.RUNNING}),
    Action.FREEZE: frozenset({State.RUNNING}),
    Action.THAW: frozenset({State.RUNNING}),
    Action.ATTACH_DISK: _NOT_RUNNING | {State.RUNNING, State.PAUSED},
    Action.ATTACH_NIC: _NOT_RUNNING | {State.RUNNING, State.PAUSED},
    Action.DETACH_DISK: _NOT_RUNNING | {State.RUNNING},
    Action.DETACH_NIC: _NOT_RUNNING | {State.RUNNING},
}
# a paused VM would have to go on for these: another VMM, or a guest that lets go of a device
NEEDS_GUEST = frozenset({Action.SWITCH, Action.UPDATE_VMM, Action.DETACH_DISK, Action.DETACH_NIC})

# pulling the plug is what one does when the guest does not shut down
BESIDE: dict[Action, frozenset[str]] = {Action.STOP: frozenset({f"vm.{Action.SHUTDOWN}"})}


def check_action(action: Action, vm: VmView) -> None:
    """Refuse an action that the VM's state does not allow, before anything begins.

    The manager checks again when it acts. Raises ``WrongStateError``.
    """
    state = vm.status.state
    if state not in ALLOWED[action]:
        needed = " or ".join(each for each in State if each in ALLOWED[action])
        remedy = f"it must be {needed}"
        if state is State.PAUSED and action in NEEDS_GUEST:
            remedy = f"duovisor vm resume {vm.record.name}"
        raise WrongStateError(f"cannot {action.verb} {vm.record.name}: it is {state}", remedy=remedy)
