"""The scratch disk, one fio job at a time: what it does, how long requests take, and who works for it.

Past the guest's page cache (``direct``), on an image in the host's: what is compared is the way to the driver
and the driver, not a disk.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from typing import TYPE_CHECKING, Any

from duovisor.comparison.errors import MeasureError
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.plan import STORAGE_JOBS
from duovisor.comparison.processes import read_processor_by_role
from duovisor.comparison.rig import SCRATCH_MIB
from duovisor.comparison.shell import FINISHED

if TYPE_CHECKING:
    from duovisor.comparison.guest import Guest
    from duovisor.comparison.measures.context import Measure
    from duovisor.comparison.plan import StorageJob
    from duovisor.spec.vm import Design

RAMP_S = 0.2
FIO_S = 60.0
PERCENTILES = {"50.000000": "p50_us", "99.000000": "p99_us", "99.900000": "p99_9_us"}
BYTES_PER_MIB = 1 << 20
BLOCK_BYTES = {"4k": 4096, "1m": 1 << 20}
SECTOR_BYTES = 512
BEGUN_SECTORS = 100
COUNTED_PART = 0.6  # of a job's time; before and after it fio starts and ends


def build_measure(job: StorageJob) -> Measure:
    """The measure of one job."""

    async def measure(context: Context, design: Design) -> Figures:
        guest = await context.rig.guest(design)
        device = await guest.find_scratch()
        await guest.begin(build_command(job, f"/dev/{device}", context.scale.job_s))
        costs = await _measure_cost(guest, job, context.scale.job_s)
        code, printed = await guest.finish(context.scale.job_s + FIO_S)
        if code:
            raise MeasureError(f"fio ended with {code}: {' '.join(printed.split())[-200:]}")
        values = parse_report(printed, job)
        return Figures(
            {**values, "cpu_us": sum(costs.values()), **{f"cpu_us:{r}": c for r, c in costs.items()}}
        )

    return measure


async def _measure_cost(guest: Guest, job: StorageJob, job_s: float) -> dict[str, float]:
    """Processor time of each role for one request, in microseconds, while the job is at work.

    Both looks cost the guest the same few milliseconds, so that what is between them is as long on the
    host's clock as in the guest's count.
    """
    processes = guest.list_processes()
    count = build_count_script(await guest.find_scratch())
    begun = f"[ $all -gt $((was + {BEGUN_SECTORS})) ] || [ -e {FINISHED} ]"
    wait = f"{count}; was=$all; until {begun}; do sleep 0.02; {count}; done; echo $all"
    first = int(await guest.output(wait))
    before = read_processor_by_role(processes)
    await asyncio.sleep(job_s * COUNTED_PART)
    last = int(await guest.output(f"{count}; echo $all"))
    after = read_processor_by_role(processes)
    requests = (last - first) * SECTOR_BYTES / BLOCK_BYTES[job.block]
    if requests < 1:
        return {}
    costs = {role: (after[role] - before[role]) / 1e3 / requests for role in after}
    return {role: each for role, each in costs.items() if each > 0}


def build_count_script(device: str) -> str:
    """Shell code that has the sectors read and written in ``all``; Documentation/block/stat.rst."""
    return f"read -r _ _ r _ _ _ w _ </sys/block/{device}/stat; all=$((r + w))"


MEASURES = {f"storage.{job.name}": build_measure(job) for job in STORAGE_JOBS}


def build_command(job: StorageJob, device: str, runtime_s: float) -> str:
    """fio's command line for the guest's shell."""
    words = [
        "fio", "--output-format=json", f"--name={job.name}", f"--filename={device}", "--direct=1",
        "--ioengine=libaio", "--thread", "--norandommap", f"--rw={job.rw}", f"--bs={job.block}",
        f"--iodepth={job.depth}", f"--size={SCRATCH_MIB}m", "--time_based",
        f"--runtime={round(runtime_s * 1000)}ms", f"--ramp_time={round(RAMP_S * 1000)}ms",
        "--percentile_list=50:99:99.9", *(["--fsync=1"] if job.fsync else []),
    ]  # fmt: skip
    return shlex.join(words)


def parse_report(printed: str, job: StorageJob) -> dict[str, float]:
    """What fio's JSON says of the job. Raises ``MeasureError``."""
    try:
        document = json.loads(printed[printed.find("{") : printed.rfind("}") + 1])
        (report,) = document["jobs"]
        if report["error"]:
            raise MeasureError(f"fio met error {report['error']} in {job.name}")
        side = report["read" if "read" in job.rw else "write"]
        return _read_side(report, side, job)
    except (ValueError, KeyError, TypeError) as error:
        words = " ".join(printed.split())[:200] or "nothing"
        raise MeasureError(f"fio gave no report but said: {words}") from error


def _read_side(report: dict[str, Any], side: dict[str, Any], job: StorageJob) -> dict[str, float]:
    if job.fsync:
        sync = report["sync"]["lat_ns"]
        values = {"fsyncs_per_s": float(side["iops"])}
        return values | _read_percentiles(sync)
    values = {"iops": float(side["iops"]), "mib_s": float(side["bw_bytes"]) / BYTES_PER_MIB}
    return values | _read_percentiles(side["clat_ns"])


def _read_percentiles(latencies: dict[str, Any]) -> dict[str, float]:
    found = latencies.get("percentile", {})
    return {name: float(found[key]) / 1e3 for key, name in PERCENTILES.items() if key in found}
