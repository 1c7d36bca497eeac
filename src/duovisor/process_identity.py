"""Which process is meant, across restarts of whoever started it: its number and the moment it began.

A number alone may be somebody else's by the time it is used; with the start time, and a pidfd opened before
that is compared, it cannot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_STATE, _START_TIME = 3, 22  # fields of /proc/PID/stat, proc(5), counted from 1
_DEAD = ("Z", "X")


class ProcessIdentity(NamedTuple):
    """A process of this boot; ``start_ticks`` is when it began, in clock ticks since the host started."""

    pid: int
    start_ticks: int


def read_identity(pid: int) -> ProcessIdentity:
    """Who has this number now. Raises ``ProcessLookupError`` when nobody has, or only a zombie."""
    fields = _read_fields(pid)
    if fields[_STATE] in _DEAD:
        raise ProcessLookupError(f"process {pid} has ended")
    return ProcessIdentity(pid, int(fields[_START_TIME]))


def read_start_ticks(pid: int) -> int:
    """When a process began, which may be a zombie by now. Raises ``ProcessLookupError``."""
    return int(_read_fields(pid)[_START_TIME])


def read_state(pid: int) -> str:
    """The kernel's letter for what a process does: ``T`` is stopped. Raises ``ProcessLookupError``."""
    return _read_fields(pid)[_STATE]


def open_living(identity: ProcessIdentity) -> int | None:
    """A pidfd of the process, or ``None`` when it has ended."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    try:
        if read_identity(identity.pid) == identity:
            return pidfd
    except ProcessLookupError:
        pass  # it ended while we looked
    os.close(pidfd)
    return None


def is_living(identity: ProcessIdentity) -> bool:
    """Whether the process is there."""
    try:
        return read_identity(identity.pid) == identity
    except ProcessLookupError:
        return False


def read_children(pid: int) -> list[int]:
    """The children of a process with one thread; none when it has ended."""
    try:
        # proc(5): /proc/PID/task/TID/children, kernels with CONFIG_PROC_CHILDREN
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _read_fields(pid: int) -> dict[int, str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"there is no process {pid}") from None
    # the second field is the command in parentheses, and may hold anything
    return dict(enumerate(text.rpartition(")")[2].split(), _STATE))
