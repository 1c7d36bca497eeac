"""What a move tells while it goes on, and at its end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.spec.vm import Design

    Follow = Callable[["Step"], None]


class Step(StrEnum):
    """A move's steps in their order; from ``save`` to ``go`` the guest stands still."""

    START = "start the new VMM"
    SETTLE = "write out what is cached"
    PAUSE = "pause the guest"
    SAVE = "save the devices' state"
    TRANSLATE = "translate it"
    LOAD = "load it"
    HAND_OVER = "hand disks and cards over"
    GO = "let the guest go on"
    END = "end the old VMM"


@dataclass(frozen=True)
class MoveReport:
    """A move that succeeded: between which VMMs, how long the guest stood still, what was moved.

    ``problem``: what could not be taken off the host.
    """

    old_design: Design
    new_design: Design
    old_pid: int
    new_pid: int
    pause_ms: float
    total_ms: float
    stream_bytes: int
    step_ms: dict[Step, float]
    problem: str = ""


def ignore_steps(step: Step) -> None:
    """For those who do not follow."""
