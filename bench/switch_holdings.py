"""What a VM and its owner hold on the host: counted before and after many switches, it must be the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.networks import list_ports

from duovisor.process_identity import read_children

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine


SETTLE_S = 30.0  # of a machine that is busy; what is left then is left for good
POLL_S = 0.5


class Holdings(NamedTuple):
    """Counts; ``descriptors`` are those of the owner and of what it keeps running beside the VM."""

    processes: int
    descriptors: int
    files: int
    sockets: int
    taps: int

    def count_more(self, before: Holdings) -> dict[str, int]:
        """By how much each has grown."""
        grown = (now - then for now, then in zip(self, before, strict=True))
        return dict(zip(self._fields, grown, strict=True))


def count_holdings(machine: Machine, *, is_bridged: bool) -> Holdings:
    """Count what ``machine`` and its owner, this process, hold."""
    own = {os.getpid(), *_list_descendants(os.getpid())}
    vm = {each.watched_pid for each in machine.description.processes}
    vm |= {inner for pid in vm for inner in _list_descendants(pid)}
    files = [*machine.run_dir.rglob("*"), *machine.place.memory.path.iterdir()]
    sockets = sum(path.is_socket() for path in files)
    return Holdings(
        processes=len(own | vm),
        descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in own - vm),
        files=len(files) - sockets,
        sockets=sockets,
        taps=len(list_ports()) if is_bridged else 0,
    )


async def settle_holdings(machine: Machine, wanted: Holdings | None = None, *, is_bridged: bool) -> Holdings:
    """Count when what has just ended is gone: the count is as ``wanted``, or for a while the same."""
    deadline = time.monotonic() + SETTLE_S
    last = None
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while it was looked at
            count = count_holdings(machine, is_bridged=is_bridged)
            if count == (wanted or last) or (last is not None and time.monotonic() > deadline):
                return count
            last = count
        await asyncio.sleep(POLL_S)


def _list_descendants(pid: int) -> list[int]:
    children = read_children(pid)
    return [*children, *(inner for child in children for inner in _list_descendants(child))]
