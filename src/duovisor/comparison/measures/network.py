"""The network card on the comparison's own bridge: iperf3 between host and guest, and pings."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
from typing import TYPE_CHECKING, Any

from duovisor.comparison.echo import start_echoes
from duovisor.comparison.errors import MeasureError
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.plan import NETWORK_JOBS
from duovisor.comparison.processes import read_processor_by_role

if TYPE_CHECKING:
    from duovisor.comparison.guest import Guest
    from duovisor.comparison.measures.context import Measure
    from duovisor.comparison.plan import NetworkJob
    from duovisor.spec.vm import Design

PORT = 5201
IPERF_S = 30.0
PINGS_MIN_S = 1.0
_SET_UP = """
killall udhcpc 2>/dev/null
for disk in /sys/block/vd*; do
    serial=; read -r serial <$disk/serial
    [ "$serial" = programs ] && mkdir -p /programs && mount -t ext4 -o ro /dev/${{disk##*/}} /programs
done
ip addr add {address}/24 dev eth0 && ip link set eth0 up || exit
/programs/lib/loader --library-path /programs/lib /programs/iperf3 -s -D -p {port}
until netstat -ltn | grep -q ':{port} '; do sleep 0.1; done
"""


async def prepare_network(context: Context, guest: Guest) -> None:
    """Give a guest its address and have it serve iperf3, once. Raises ``SkippedError``, ``MeasureError``."""
    if context.rig.no_network is not None:
        raise context.rig.no_network
    if not guest.has_network:
        await guest.output(_SET_UP.format(address=guest.address, port=PORT))
        guest.has_network = True


async def measure_preparation(context: Context, design: Design) -> Figures:
    """No figures: what the jobs after it need, in a step of its own so that no job waits for it."""
    await prepare_network(context, await context.rig.guest(design))
    return Figures({})


def build_measure(job: NetworkJob) -> Measure:
    """The measure of one job of iperf3."""

    async def measure(context: Context, design: Design) -> Figures:
        guest = await context.rig.guest(design)
        await prepare_network(context, guest)
        processes = guest.list_processes()
        before = read_processor_by_role(processes)
        report = await run_iperf(guest.address, job, context.scale.job_s)
        after = read_processor_by_role(processes)
        value, transferred = parse_report(report, job)
        name, per = ("packets_per_s", "cpu_us") if job.counts_packets else ("mbit_s", "cpu_ms_per_mb")
        scale = 1e3 if job.counts_packets else 1e6
        costs = {
            role: (after[role] - before[role]) / scale / transferred for role in after if transferred > 0
        }
        costs = {role: each for role, each in costs.items() if each > 0}
        return Figures({
            name: value, per: sum(costs.values()), **{f"{per}:{role}": each for role, each in costs.items()}
        })  # fmt: skip

    return measure


async def run_iperf(address: str, job: NetworkJob, seconds: float, *, port: int = PORT) -> bytes:
    """What iperf3 on the host says of one job. Raises ``MeasureError``."""
    argv = ["iperf3", "-c", address, "-p", str(port), "-t", f"{max(1.0, seconds):g}", "-J", *job.options]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(seconds + IPERF_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise MeasureError(f"iperf3 did not end within {seconds + IPERF_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output


def parse_report(output: bytes, job: NetworkJob) -> tuple[float, float]:
    """Mbit/s and the megabytes moved, or packets that arrived per second and their number.

    Raises ``MeasureError``.
    """
    try:
        report: dict[str, Any] = json.loads(output)
        if "error" in report:
            raise MeasureError(f"iperf3: {report['error']}")
        end = report["end"]
        if job.counts_packets:
            arrived = end["sum"]["packets"] - end["sum"]["lost_packets"]
            return arrived / end["sum"]["seconds"], float(arrived)
        received = end["sum_received"]
        return received["bits_per_second"] / 1e6, received["bytes"] / 1e6
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise MeasureError(f"iperf3 gave no report but said: {output[:200]!r}") from error


async def measure_round_trip(context: Context, design: Design) -> Figures:
    """Median and 99th percentile of pings from the host, in microseconds."""
    guest = await context.rig.guest(design)
    await prepare_network(context, guest)
    async with start_echoes(guest.address, os.getpid() & 0xFFFF) as echoes:
        await asyncio.sleep(max(PINGS_MIN_S, context.scale.job_s))
        found = echoes.collect()
    times = sorted(echo.round_trip_s * 1e6 for echo in found if echo.round_trip_s is not None)
    if not times:
        raise MeasureError("no ping was answered")
    return Figures({
        "round_trip_us": statistics.median(times),
        "round_trip_p99_us": times[min(len(times) - 1, int(len(times) * 0.99))],
    })  # fmt: skip


MEASURES: dict[str, Measure] = {
    "network.prepare": measure_preparation,
    **{f"network.{job.name}": build_measure(job) for job in NETWORK_JOBS},
    "network.round_trip": measure_round_trip,
}
