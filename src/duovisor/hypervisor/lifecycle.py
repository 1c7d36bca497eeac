"""The guarded life cycle of a virtual machine.

::

    defined ──► starting ──► running ◄──► paused
                   │            │            │
                   │            ▼            │
                   │        stopping ◄───────┘
                   ▼            ▼
    any of the four living ─► stopped | crashed

Every step is reported by the VMM (a QMP event) or by the kernel (the process ended); a request alone
changes nothing but ``defined → starting``.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import WrongStateError

if TYPE_CHECKING:
    from collections.abc import Collection


class State(StrEnum):
    """Where a virtual machine is in its life."""

    DEFINED = "defined"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"


ENDED = frozenset({State.STOPPED, State.CRASHED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.DEFINED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.RUNNING, State.PAUSED, State.STOPPING, State.STOPPED, State.CRASHED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.STOPPED, State.CRASHED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING, State.STOPPED, State.CRASHED}),
    State.STOPPING: frozenset({State.STOPPED, State.CRASHED}),
    State.STOPPED: frozenset(),
    State.CRASHED: frozenset(),
}


class Lifecycle:
    """One machine's state, its history, and waiting for the next one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history: list[State] = [State.DEFINED]
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        return self.history[-1]

    def enter(self, state: State) -> None:
        """Go to ``state``; staying where we are is no step. Raises ``WrongStateError``."""
        if state is self.state:
            return
        if state not in TRANSITIONS[self.state]:
            raise WrongStateError(f"{self.name} cannot go from {self.state} to {state}")
        self.history.append(state)
        self._changed.set()
        self._changed = asyncio.Event()

    def require(self, allowed: Collection[State], action: str) -> None:
        """Refuse ``action`` unless the state is one of ``allowed``. Raises ``WrongStateError``."""
        if self.state not in allowed:
            needed = " or ".join(state for state in State if state in allowed)
            raise WrongStateError(
                f"cannot {action} {self.name}: it is {self.state}", remedy=f"it must be {needed}"
            )

    async def wait_for(self, states: Collection[State], *, timeout_s: float | None = None) -> State:
        """Wait until the state is one of ``states``, or the life has ended. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            while self.state not in states and self.state not in ENDED:
                await self._changed.wait()
        return self.state
