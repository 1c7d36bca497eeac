"""What a VM's processes use of the host: processor time and memory, read from /proc while they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.description import Duty, find_program

if TYPE_CHECKING:
    from duovisor.controlling.description import MachineDescription

PROC = Path("/proc")
FACTORY = "partition factory"


class VmProcess(NamedTuple):
    """A process of a VM, by what it is there for."""

    role: str
    pid: int


def list_processes(machine: MachineDescription) -> list[VmProcess]:
    """The processes of a running VM; of those in a sandbox, the program itself."""
    found = []
    for each in machine.processes:
        role = f"{each.role}, spare" if each.duty is Duty.SPARE else each.role
        found.append(VmProcess(role, find_program(each).pid))
    return found


def read_processor_ns(pid: int, proc: Path = PROC) -> int:
    """The time that the threads of a process have run, in nanoseconds; 0 when it has ended.

    Source: Documentation/scheduler/sched-stats.rst, first field of schedstat.
    """
    total = 0
    try:
        for thread in (proc / str(pid) / "task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except OSError:
        return total
    return total


def read_processor_by_role(processes: list[VmProcess], proc: Path = PROC) -> dict[str, int]:
    """``read_processor_ns`` of all processes of each role."""
    found: dict[str, int] = {}
    for each in processes:
        found[each.role] = found.get(each.role, 0) + read_processor_ns(each.pid, proc)
    return found


def read_pss_kib(pid: int, memory_inode: int, proc: Path = PROC) -> tuple[int, int]:
    """The proportional set size of a process, and how much of it are pages of guest memory, in KiB.

    Source: proc(5), smaps. Raises ``OSError`` when the process has ended or is not ours to read.
    """
    total = guest = 0
    inside = False
    for line in (proc / str(pid) / "smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            inside = fields[4] == str(memory_inode)  # its path looks different in each mount namespace
        elif fields[0] == "Pss:":
            total += int(fields[1])
            guest += int(fields[1]) if inside else 0
    return total, guest


def read_code_bytes(pid: int, proc: Path = PROC) -> int:
    """How much machine code a process has mapped from files, in bytes: its program and its libraries.

    Raises ``OSError`` when the process has ended or is not ours to read.
    """
    total = 0
    for line in (proc / str(pid) / "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            first, _, last = fields[0].partition("-")
            total += int(last, 16) - int(first, 16)
    return total
