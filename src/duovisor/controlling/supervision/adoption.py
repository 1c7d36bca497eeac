"""Finding the drivers that a previous owner left at work, and what they hold.

Descriptors are copied out of a living partition (pidfd_getfd, Linux 5.6) and compared with what they should
be: the partition is not asked, and may be hung. With the image's descriptor comes its lock.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor import process
from duovisor.controlling.description import Duty
from duovisor.controlling.disk_files import open_image_file
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.control import ControlConnection
from duovisor.controlling.supervision.seat import Seat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.supervision.crew import Crew
    from duovisor.controlling.supervision.plan import Host
    from duovisor.spec.vm import DiskSpec

PIDFD_GETFD = 438  # x86-64 and every other architecture: include/uapi/asm-generic/unistd.h
PAGE_NAME = "/memfd:duovisor-page"

Matches = Callable[[Path], bool]


def is_file(path: str) -> Matches:
    """Matches a descriptor of the file or device that is under ``path`` now."""
    try:
        wanted = os.stat(path)
    except OSError:
        return lambda _: False
    return lambda link: os.path.samestat(link.stat(), wanted)


def is_memory_file(name: str) -> Matches:
    """Matches a descriptor of a memory file (memfd) made under ``name``."""
    return lambda link: os.readlink(link).startswith(name)


def take_descriptor(pid: int, matches: Matches) -> int | None:
    """A copy of the first matching descriptor of another process; ``None`` when it has none, or has ended."""
    return next(iter(list_descriptors(pid, matches, at_most=1)), None)


def list_descriptors(pid: int, matches: Matches, *, at_most: int = 1 << 20) -> list[int]:
    """Copies of the matching descriptors of another process, in its order; none when it has ended."""
    taken: list[int] = []
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return taken
    with suppress(OSError):  # it has ended
        for link in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda each: int(each.name)):
            with suppress(OSError):  # it was closed meanwhile
                if len(taken) < at_most and matches(link):
                    taken.append(_copy_descriptor(pidfd, int(link.name)))
    os.close(pidfd)
    return taken


def _copy_descriptor(pidfd: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    copied = int(libc.syscall(PIDFD_GETFD, pidfd, number, 0))
    if copied < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    os.set_inheritable(copied, False)
    return copied


class AdoptedImage(NamedTuple):
    """A disk's image, locked; ``close`` lets go of it."""

    descriptor: int
    close: Callable[[], None]


def adopt_image(disk: DiskSpec, pids: Iterable[int]) -> AdoptedImage:
    """The image that one of these processes holds, with its lock; or else opened and locked again.

    Raises ``DiskFileError`` or ``DiskLockedError``.
    """
    for pid in pids:
        descriptor = take_descriptor(pid, is_file(disk.path))
        if descriptor is not None:
            return AdoptedImage(descriptor, partial(os.close, descriptor))
    with ExitStack() as stack:
        opened = stack.enter_context(open_image_file(disk))
        return AdoptedImage(opened.descriptor, stack.pop_all().close)


async def adopt_crew(crew: Crew, found: Iterable[ProcessDescription], host: Host) -> None:
    """Take over the partitions of a device that still live; those that do not answer are ended.

    Afterwards ``crew`` has an active partition, or none at all.
    """
    seats: dict[Duty, Seat] = {}
    for described in found:
        running = process.adopt(
            described.identity,
            described.argv,
            role=described.role,
            log=host.run_dir / described.log,
            sandboxed=False,
        )
        if running is None:
            continue
        if crew.page < 0:
            page = await asyncio.to_thread(take_descriptor, running.pid, is_memory_file(PAGE_NAME))
            crew.page = -1 if page is None else page
        seat, duty = await _meet(running, described, host, crew.notify)
        if seat is not None and duty not in seats:
            seats[duty] = seat
        elif seat is not None:
            await seat.kill()
        else:
            await running.kill()
    active, crew.spare = seats.get(Duty.ACTIVE), seats.get(Duty.SPARE)
    if active is not None:
        active.serves()
        await crew.seat_active(active)
    elif crew.spare is not None:
        await _await_takeover(crew, crew.spare)
    kept = {seat.control_name for seat in (crew.active, crew.spare) if seat is not None}
    for path in host.run_dir.glob(f"{crew.plan.device}.*.control"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


async def _meet(
    running: process.Process, described: ProcessDescription, host: Host, notify: Callable[[], None]
) -> tuple[Seat | None, Duty]:
    """Ask a partition what it does now: its duty may have changed since it was written down."""
    try:
        control = await ControlConnection.connect(host.run_dir / described.control)
    except (PartitionError, OSError):
        return None, Duty.NONE
    try:
        status = await control.request("status")
        duty = Duty(str(status.get("role")))
        code = str(status.get("code", ""))[:40]
        is_full = status.get("full") is True
    except (PartitionError, ValueError):
        control.close()
        return None, Duty.NONE
    seat = Seat(running, control, code, described.control, notify)
    if is_full:
        seat.note("full")
    return seat, duty


async def _await_takeover(crew: Crew, spare: Seat) -> None:
    """The driver died as we came: the spare is just taking over, or cannot."""
    if await spare.wait_for("serving", timeout_s=2.0):
        await crew.seat_active(spare)
    else:
        await crew.dismiss_spare()
