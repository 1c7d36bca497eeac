"""Storage work for a probe guest: fio's command lines, its report, and the figures that come of them.

Every job goes past the guest's page cache (``direct=1``) with several requests in flight (libaio), so that
what is measured is the path to the driver. ``verify`` writes blocks with checksums in random order, reads
them back, and then reads them once more from a second fio that remembers nothing.
"""

from __future__ import annotations

import json
import secrets
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from duovisor.controlling.images.errors import StorageJobError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.controlling.images.probe_client import ProbeClient

OK = "ok"
VERIFY_MIB = 64
_MARGIN_S = 60.0  # fio's own start and end in a slow guest
_BYTES_PER_MIB = 1 << 20


class Job(NamedTuple):
    """One timed access pattern; ``rw`` and ``block`` in fio's words."""

    name: str
    rw: str
    block: str
    depth: int
    figure: str


JOBS = (
    Job("read_4k_qd1", "randread", "4k", 1, "read_4k_qd1_iops"),
    Job("read_4k_qd32", "randread", "4k", 32, "read_4k_qd32_iops"),
    Job("randwrite_4k_qd32", "randwrite", "4k", 32, "randwrite_4k_qd32_iops"),
    Job("read_1m_qd4", "read", "1m", 4, "read_1m_qd4_mib_s"),
)


class JobResult(NamedTuple):
    """What fio reports of one job; ``error`` is an errno, 0 when all went well."""

    iops: float
    mib_s: float
    error: int


class StorageFigures(BaseModel):
    """The figures of one guest's disk; ``verify`` is ``ok`` or what was wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read_4k_qd1_iops: float
    read_4k_qd32_iops: float
    randwrite_4k_qd32_iops: float
    read_1m_qd4_mib_s: float
    verify: str


def build_job_command(
    jobs: Sequence[Job], device: str, *, runtime_s: float, ramp_s: float = 0.5, size_mib: int | None = None
) -> str:
    """A command for the guest's shell that runs ``jobs`` one after the other on ``device``.

    One fio for several jobs saves its start (0.7 s without KVM). ``size_mib`` keeps it to the disk's start.
    """
    words = ["fio", "--output-format=json", *_build_common(device), "--gtod_reduce=1", "--norandommap"]
    words += [
        "--time_based",
        f"--runtime={round(runtime_s * 1000)}ms",
        f"--ramp_time={round(ramp_s * 1000)}ms",
    ]
    if size_mib is not None:
        words.append(f"--size={size_mib}m")
    for job in jobs:
        words += [f"--name={job.name}", "--stonewall", f"--rw={job.rw}", f"--bs={job.block}"]
        words.append(f"--iodepth={job.depth}")
    return shlex.join(words)


def build_fill_command(device: str, size_mib: int) -> str:
    """A command that writes the disk's start once, so that reads do not meet holes of a sparse file."""
    words = ["fio", "--output-format=json", *_build_common(device), "--name=fill", "--rw=write", "--bs=1m"]
    return shlex.join([*words, "--iodepth=4", f"--size={size_mib}m"])


def build_verify_commands(device: str, *, seed: int, size_mib: int = VERIFY_MIB) -> tuple[str, str]:
    """Two commands: write with checksums and read back; then, in a fio of its own, read all of it again.

    fio checks the ``seed`` too: with a new one, what an earlier run left does not pass for this one's writes.
    """
    words = ["fio", "--output-format=json", *_build_common(device), "--name=verify", "--rw=randwrite"]
    words += ["--bs=16k", "--iodepth=16", f"--size={size_mib}m", "--verify=crc32c", "--verify_fatal=1"]
    words += ["--do_verify=1", f"--randseed={seed}"]
    return shlex.join(words), shlex.join([*words, "--verify_only=1"])


def parse_report(output: bytes) -> dict[str, JobResult]:
    """Read fio's JSON by job name; what it prints around the document is passed over.

    Raises ``StorageJobError`` with fio's own words when there is no document.
    """
    text = output.decode(errors="replace")
    start, end = text.find("{"), text.rfind("}")
    try:
        document = json.loads(text[start : end + 1])
        return {job["jobname"]: _read_job(job) for job in document["jobs"]}
    except (ValueError, KeyError, TypeError) as error:
        words = " ".join(text.split())[:200] or "nothing"
        raise StorageJobError(f"fio gave no report but said: {words}") from error


async def run_jobs(
    client: ProbeClient,
    device: str,
    *,
    runtime_s: float,
    size_mib: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> StorageFigures:
    """Verify ``device`` (its content is overwritten), then measure it; ``progress`` hears each job's name.

    Raises ``StorageJobError`` when fio cannot run; a checksum that is wrong is told in ``verify``.
    """
    progress("verify")
    figures: dict[str, Any] = {"verify": await run_verify(client, device)}
    for job in JOBS:
        progress(job.name)
        figures[job.figure] = await run_job(client, device, job, runtime_s=runtime_s, size_mib=size_mib)
    return StorageFigures(**figures)


async def run_job(
    client: ProbeClient, device: str, job: Job, *, runtime_s: float, size_mib: int | None = None
) -> float:
    """Run one job and return its figure: IOPS, or MiB/s for those whose name says so."""
    command = build_job_command([job], device, runtime_s=runtime_s, size_mib=size_mib)
    done = await client.run(command, timeout_s=runtime_s + _MARGIN_S)
    if done.exit:
        raise StorageJobError(f"fio's job {job.name} failed: {find_complaint(done.output)}")
    result = parse_report(done.output)[job.name]
    return result.mib_s if job.figure.endswith("_mib_s") else result.iops


async def run_verify(client: ProbeClient, device: str, *, size_mib: int = VERIFY_MIB) -> str:
    """``ok``, or fio's words about the first block that did not hold what was written."""
    seed = secrets.randbelow(1 << 31)
    for command in build_verify_commands(device, seed=seed, size_mib=size_mib):
        done = await client.run(command, timeout_s=2 * _MARGIN_S)
        if done.exit or parse_report(done.output)["verify"].error:
            return find_complaint(done.output)
    return OK


def find_complaint(output: bytes) -> str:
    """The line in which fio says what is wrong; the first one where none stands out."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("verify:", "crc32c:", "fio:")):
            return line
    return lines[0] if lines else "fio failed without a word"


def _build_common(device: str) -> list[str]:
    return [f"--filename={device}", "--direct=1", "--ioengine=libaio", "--thread"]


def _read_job(job: dict[str, Any]) -> JobResult:
    sides = (job["read"], job["write"])
    return JobResult(
        iops=sum(float(side["iops"]) for side in sides),
        mib_s=sum(float(side["bw_bytes"]) for side in sides) / _BYTES_PER_MIB,
        error=int(job["error"]),
    )
