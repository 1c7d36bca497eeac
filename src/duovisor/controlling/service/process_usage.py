"""What a process takes of the host, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessUsage(NamedTuple):
    """Resident memory in bytes and processor time since the process began."""

    resident_bytes: int
    cpu_s: float


def find_usage(pid: int, proc: Path = PROC) -> ProcessUsage | None:
    """What a process takes; ``None`` when it is gone."""
    try:
        return parse_stat((proc / str(pid) / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def parse_stat(text: str) -> ProcessUsage:
    """Read a line of ``/proc/PID/stat``; source: proc(5), fields 14 utime, 15 stime and 24 rss."""
    fields = text.rpartition(")")[2].split()  # the name, field 2, may hold spaces and parentheses
    utime, stime, rss = int(fields[11]), int(fields[12]), int(fields[21])
    return ProcessUsage(rss * _PAGE, (utime + stime) / _TICKS_PER_S)
