"""What can be done to a VM, from which state, and how the manager is asked for it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from duovisor.controlling.service.manager import VmManager
    from duovisor.controlling.service.operations import Work
    from duovisor.controlling.vms.records import VmView


class Action(StrEnum):
    """``shutdown`` asks the guest; ``stop`` pulls the plug."""

    START = "start"
    SHUTDOWN = "shutdown"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"


_NOT_RUNNING = frozenset({State.DEFINED, State.STOPPED, State.CRASHED})
_LIVING = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING})

ALLOWED: dict[Action, frozenset[State]] = {
    Action.START: _NOT_RUNNING,
    Action.SHUTDOWN: frozenset({State.RUNNING, State.STOPPING}),
    Action.STOP: _LIVING,
    Action.PAUSE: frozenset({State.RUNNING}),
    Action.RESUME: frozenset({State.PAUSED}),
    Action.RESET: frozenset({State.RUNNING, State.PAUSED}),
}

# pulling the plug is what one does when the guest does not shut down
BESIDE: dict[Action, frozenset[str]] = {Action.STOP: frozenset({f"vm.{Action.SHUTDOWN}"})}


def check_action(action: Action, vm: VmView) -> None:
    """Refuse an action that the VM's state does not allow, before anything begins.

    The manager checks again when it acts. Raises ``WrongStateError``.
    """
    state = vm.status.state
    if state not in ALLOWED[action]:
        needed = " or ".join(each for each in State if each in ALLOWED[action])
        raise WrongStateError(
            f"cannot {action} {vm.record.name}: it is {state}", remedy=f"it must be {needed}"
        )


def build_work(manager: VmManager, action: Action, name: str, *, timeout_s: float) -> Work:
    """The work of an operation that does an action; ``timeout_s`` is how long a guest may shut down."""
    match action:
        case Action.START:
            return lambda progress: manager.start(name, progress)
        case Action.SHUTDOWN:
            return lambda progress: manager.shutdown(name, timeout_s, progress)
        case Action.STOP:
            return lambda progress: manager.stop(name)
        case Action.PAUSE:
            return lambda progress: manager.pause(name)
        case Action.RESUME:
            return lambda progress: manager.resume(name)
        case Action.RESET:
            return lambda progress: manager.reset(name)
