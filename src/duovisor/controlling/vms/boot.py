"""Which boot of this host it is: processes, sockets and guest memory of another one are gone."""

from __future__ import annotations

from pathlib import Path

from duovisor.process_identity import read_start_ticks

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """An identifier that changes when the host, or the container that we are in, is started again.

    A container keeps its host's ``boot_id`` (random(4)); its first process is another one each time.
    """
    return f"{_BOOT_ID.read_text().strip()}-{read_start_ticks(1)}"
