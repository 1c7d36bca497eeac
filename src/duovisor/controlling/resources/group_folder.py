"""Folders of a cgroup v2 tree: what the kernel shows there, and nothing of ours.

Documentation/admin-guide/cgroup-v2.rst: a group whose controllers are on for its children holds no process
itself; so processes sit in the leaves.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from duovisor.controlling.resources.limits import GroupLimits

MOUNT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
CONTROLLERS = "+memory +pids"


def find_group(pid: int, proc: Path = PROC, mount: Path = MOUNT) -> Path | None:
    """The folder of a process's group; ``None`` when it has ended, or has none in the unified hierarchy."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::/"):
            return mount / line.removeprefix("0::/")
    return None


def turn_controllers_on(folder: Path) -> None:
    """Let the folder's children have limits. Raises ``OSError``; no process may be in the folder itself."""
    (folder / "cgroup.subtree_control").write_text(CONTROLLERS)


def write_limits(folder: Path, limits: GroupLimits) -> None:
    """Set what the group may use. Raises ``OSError``."""
    (folder / "memory.max").write_text(str(limits.memory_mib << 20))
    (folder / "pids.max").write_text(str(limits.processes))


def read_limits(folder: Path) -> GroupLimits | None:
    """What the group may use, as set; ``None`` when it is not limited in both."""
    try:
        memory, processes = (int((folder / name).read_text()) for name in ("memory.max", "pids.max"))
    except (OSError, ValueError):  # "max" is no number
        return None
    return GroupLimits(memory >> 20, processes)


def add_process(folder: Path, pid: int) -> None:
    """Move a process, with all its threads, into the group. Raises ``OSError``."""
    (folder / "cgroup.procs").write_text(str(pid))


def list_processes(folder: Path) -> list[int]:
    """The processes in the group itself; none when it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def remove_empty_children(folder: Path) -> None:
    """Remove the groups below in which nothing is left; the kernel refuses the others."""
    for child in folder.glob("*/"):
        with contextlib.suppress(OSError):
            child.rmdir()
