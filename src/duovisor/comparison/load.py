"""What a guest does while something is killed or replaced: reads that feel it, writes that prove it.

One fio with two jobs. The *reader* has one read in flight at any time: its longest read is what the guest
felt. The *writer* writes blocks with checksums at an even pace, and reads all of them back at the end.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.errors import MeasureError

if TYPE_CHECKING:
    from duovisor.comparison.shell import Shell

WRITES_PER_S = 200
BLOCK_KIB = 4
READER_OFFSET_MIB, READER_MIB = 64, 32
TOKEN_SECTOR = 112 * 2048  # behind both, in sectors of 512 bytes
BEGUN_READS = 50
FINISH_S = 90.0


class LoadVerdict(NamedTuple):
    """``longest_ms``: the longest read; ``complaint``: what fio met or found damaged, empty if nothing."""

    longest_ms: float
    complaint: str


def build_load_command(device: str, seconds: float) -> str:
    """fio's command line for the guest's shell."""
    writes_kib = int(WRITES_PER_S * seconds) * BLOCK_KIB
    words = [
        "fio", "--output-format=json", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--thread",
        "--bs=4k", "--name=reader", "--rw=randread", "--norandommap", f"--offset={READER_OFFSET_MIB}m",
        f"--size={READER_MIB}m", "--time_based", f"--runtime={round(seconds * 1000)}ms",
        "--name=writer", "--rw=randwrite", "--iodepth=4", "--offset=0", f"--size={writes_kib}k",
        "--time_based=0", "--runtime=0", f"--rate_iops=,{WRITES_PER_S}", "--verify=crc32c", "--do_verify=1",
        "--verify_fatal=1",
    ]  # fmt: skip
    return shlex.join(words)


def parse_load(code: int, printed: str) -> LoadVerdict:
    """What the load came to. Raises ``MeasureError`` when fio tells nothing at all."""
    try:
        document = json.loads(printed[printed.find("{") : printed.rfind("}") + 1])
        jobs = {job["jobname"]: job for job in document["jobs"]}
        longest_ms = jobs["reader"]["read"]["clat_ns"]["max"] / 1e6
        errors = [f"{name}: error {job['error']}" for name, job in jobs.items() if job["error"]]
    except (ValueError, KeyError, TypeError) as error:
        words = " ".join(printed.split())[:200] or "nothing"
        raise MeasureError(f"the load gave no report but said: {words}") from error
    if code and not errors:
        errors = [f"fio ended with {code}"]
    said = [line.strip() for line in printed.splitlines() if line.startswith(("verify", "fio:", "crc32c"))]
    return LoadVerdict(longest_ms, "; ".join([*errors, *said[:2]]))


async def begin_load(guest: Shell, seconds: float) -> None:
    """Begin the load, and wait until it is at work."""
    device = await guest.find_scratch()
    count = f"read -r reads _ </sys/block/{device}/stat"
    await guest.output(f"fio --version >/dev/null; {count}; echo $reads >/run/reads")
    await guest.begin(build_load_command(f"/dev/{device}", seconds))
    await guest.output(
        f"read -r before </run/reads; until {count}; [ $((reads - before)) -gt {BEGUN_READS} ] ||"
        " [ -e /run/job.done ]; do sleep 0.02; done"
    )


async def finish_load(guest: Shell) -> LoadVerdict:
    """Wait for the load's end and verification. Raises as ``Shell.finish``, ``MeasureError``."""
    return parse_load(*await guest.finish(FINISH_S))


async def write_token(guest: Shell, token: str) -> None:
    """Write a word to the disk and flush it: it is acknowledged when this returns."""
    device = await guest.find_scratch()
    await guest.output(
        f"echo {token} | dd of=/dev/{device} bs=512 seek={TOKEN_SECTOR} conv=fsync 2>/dev/null"
    )


async def read_token(guest: Shell) -> str:
    """The word that is on the disk."""
    device = await guest.find_scratch()
    return (
        await guest.output(f"dd if=/dev/{device} bs=512 skip={TOKEN_SECTOR} count=1 2>/dev/null | head -n 1")
    ).strip()
