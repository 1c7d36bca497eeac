"""What each process of a VM may reach on the host, read from /proc while it runs."""

from __future__ import annotations

import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.comparison.measures.context import Context, Figures
from duovisor.controlling.anatomy import read_anatomy

if TYPE_CHECKING:
    from duovisor.spec.vm import Design

PROC = Path("/proc")
NAMESPACES = ("mnt", "net", "pid", "ipc", "uts", "user", "cgroup")
_KINDS = (
    (stat.S_ISREG, "file"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISDIR, "folder"),
)

_NULL = os.makedev(1, 3)  # /dev/null


async def measure_authority(context: Context, design: Design) -> Figures:
    """Facts alone: the VM's anatomy, and of each process descriptors, namespaces, capabilities, seccomp."""
    guest = await context.rig.guest(design)
    anatomy = read_anatomy(guest.machine.description)
    processes = []
    for process in anatomy.processes:
        document = asdict(process)
        document.pop("command")
        processes.append({**document, "authority": read_authority(process.pid)})
    return Figures(
        {},
        {
            "accelerator": anatomy.accelerator,
            "vmm": anatomy.vmm,
            "vmm_reason": anatomy.vmm_reason,
            "processes": processes,
        },
    )


def read_authority(pid: int, proc: Path = PROC) -> dict[str, Any]:
    """What a process may do, as the kernel has it; empty when it has ended or is not ours to read."""
    folder = proc / str(pid)
    try:
        fields = dict(
            line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
        )
        return {
            "uid": int(fields["Uid"].split()[0]),
            "capabilities": int(fields["CapEff"], 16).bit_count(),
            "seccomp_filters": int(fields.get("Seccomp_filters", fields["Seccomp"] == "2")),
            "no_new_privileges": fields.get("NoNewPrivs") == "1",
            "own_namespaces": [name for name in NAMESPACES if _has_own(folder, name, proc)],
            "descriptors": _count_descriptors(folder),
        }
    except (OSError, KeyError, ValueError):
        return {}


def _has_own(folder: Path, name: str, proc: Path) -> bool:
    return os.readlink(folder / "ns" / name) != os.readlink(proc / "self/ns" / name)


def _count_descriptors(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for link in (folder / "fd").iterdir():
        try:
            target, status = os.readlink(link), link.stat()
        except OSError:
            continue  # it was closed meanwhile
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL:
            continue  # it leads nowhere
        kind = next(
            (name for is_kind, name in _KINDS if is_kind(status.st_mode)),
            target.partition(":")[2].strip("[]") or "other",
        )
        if target.startswith("/memfd:"):
            kind = "memory file"
        found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items()))
