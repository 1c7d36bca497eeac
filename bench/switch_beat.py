"""How long a guest's processor stands still in a switch: a guest of 12 bytes, and who watches it.

The guest is a boot sector that adds one to a word of its memory for ever, with interrupts off. Its memory is
a file: a process on the host reads the word there every 50 µs, and notes for how long it did not change. So
this is the pause itself, without what the guest's programs need to get going again: under TCG the new VMM has
to translate all code anew, which takes a Linux guest 50 to 100 ms, and this one some µs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.switch_pauses import NS, Window

from duovisor.controlling.probe_vm import BOOT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COUNTER = 0x7000
SECTOR_BYTES, DISK_BYTES = 512, 1 << 20
#        cli   xor ax,ax  mov ds,ax  inc dword [0x7000]  jmp to inc
_CODE = b"\xfa\x31\xc0\x8e\xd8\x66\xff\x06\x00\x70\xeb\xf9"
LOOK_EVERY_S = 0.00005
STILL_S = 0.0005  # shorter ones are of no interest
_WORD = Struct("=I")


def write_disk(path: Path) -> None:
    """A disk from which the counting guest boots."""
    path.write_bytes((_CODE.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa").ljust(DISK_BYTES, b"\0"))


def watch(memory: Path, found: Path) -> None:
    """Write ``start end``, in ns since 1970, of each time in which the guest did not count, until killed."""
    with (
        memory.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view,
        found.open("w") as out,
    ):
        seen, since, looked = 0, time.time_ns(), time.time_ns()
        while True:
            (count,) = _WORD.unpack_from(view, COUNTER)
            now = time.time_ns()
            if count != seen:
                if looked - since > STILL_S * 1e9:
                    print(since, now, file=out, flush=True)
                seen, since = count, now
            looked = now
            time.sleep(LOOK_EVERY_S)


async def wait_counting(memory: Path) -> None:
    """Wait until the guest counts. Raises ``TimeoutError``."""
    async with asyncio.timeout(BOOT_TIMEOUT_S):
        with memory.open("rb") as file:
            while not any(os.pread(file.fileno(), _WORD.size, COUNTER)):  # noqa: ASYNC110 - it is memory
                await asyncio.sleep(0.1)


def fill_memory(memory: Path) -> None:
    """Give the guest all its memory, which it has as a file: what it never touched is not there else."""
    with memory.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, memory.stat().st_size)


def find_longest(gaps: list[Window], windows: list[Window]) -> list[float]:
    """For each window, the longest of the gaps that reach into it, in ms; 0 where there is none."""
    return [
        max(
            (gap.end_ns - gap.start_ns for gap in gaps if gap.start_ns < end and gap.end_ns > start),
            default=0,
        )
        / NS
        for start, end in windows
    ]


@asynccontextmanager
async def start_watching(memory: Path, found: Path) -> AsyncIterator[None]:
    """Watch the guest meanwhile; afterwards ``parse_gaps`` reads ``found``."""
    watching = await asyncio.create_subprocess_exec(sys.executable, __file__, str(memory), str(found))
    try:
        yield
    finally:
        watching.kill()
        await watching.wait()


def parse_gaps(text: str) -> list[Window]:
    """What ``watch`` wrote, but for a last line that it could not end."""
    return [Window(*map(int, line.split())) for line in text.splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]))
