"""Throughput of a card and of a disk, the thin VMM against QEMU: the same drivers beside both, in one run.

A guest on each VMM in turn, round after round, so that a machine that gets slower does so for both.
``iperf3`` between host and guest on a bridge in a network namespace of the benchmark's own; fio on a disk,
past the guest's page cache. Ratios are thin ÷ QEMU, medians of the rounds: above 1 the thin VMM is faster.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.network import JOBS as STREAMS
from bench.network import PORT, run_iperf
from bench.network_guest import Guest
from tests.networks import BRIDGE, enter_network, why_no_namespace

from duovisor.controlling.images.storage_jobs import JOBS as DISK_JOBS
from duovisor.controlling.images.storage_jobs import run_job
from duovisor.controlling.images.tools_disk import build_program_disk
from duovisor.controlling.probe_vm import find_scratch
from duovisor.spec.vm import DiskSpec, NicSpec, VmmKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.spec.vm import VirtualMachineSpec

NETWORK, STORAGE = "network_ratio", "storage_ratio"
NETWORK_JOBS = tuple(job for job in STREAMS if job.name in ("to_guest", "from_guest"))
ADDRESS = "10.77.0.2"

Round = dict[VmmKind, dict[str, float]]


class Bridged(NamedTuple):
    """A network of the benchmark's own, and a disk with iperf3 for its guests."""

    programs: Path

    def add_to(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        """The specification with a card and that disk."""
        disk = DiskSpec(path=str(self.programs), serial="programs", read_only=True)
        return spec.model_copy(update={"nics": (NicSpec(bridge=BRIDGE),), "disks": (*spec.disks, disk)})


def why_no_streams() -> str:
    """What keeps this host from measuring a card; empty when nothing does."""
    return why_no_namespace() or ("" if shutil.which("iperf3") else "there is no iperf3")


@contextmanager
def bridged() -> Iterator[Bridged | None]:
    """Be in that network; None, with the reason told, where there can be none."""
    if reason := why_no_streams():
        print(f"no network throughput: {reason}")
        yield None
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="duovisor-bench-")))
        programs = folder / "programs.raw"
        build_program_disk(programs, folder, "iperf3", label="programs")
        stack.enter_context(enter_network())
        yield Bridged(programs)


async def measure_throughput(probe: ProbeClient, seconds: float, *, network: bool) -> dict[str, float]:
    """Mbit/s of each stream, and IOPS or MiB/s of each job on the disk, by their names."""
    figures: dict[str, float] = {}
    scratch = find_scratch(probe)
    for job in DISK_JOBS:
        figures[job.name] = await run_job(probe, scratch, job, runtime_s=seconds)
    if network:
        guest = Guest(ADDRESS, probe)
        await guest.prepare()
        await guest.serve_iperf(PORT)
        for stream in NETWORK_JOBS:
            await guest.wait_iperf(PORT)
            figures[stream.name] = await run_iperf(guest, stream, seconds)
    return figures


def build_ratios(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """``network_ratio`` and ``storage_ratio`` by job, of those that were measured; pure."""
    groups = {NETWORK: [job.name for job in NETWORK_JOBS], STORAGE: [job.name for job in DISK_JOBS]}
    return {
        group: {
            name: round(statistics.median(_ratio(each, name) for each in rounds), 3)
            for name in names
            if all(name in each[kind] for each in rounds for kind in each)
        }
        for group, names in groups.items()
    }


def _ratio(measured: Round, name: str) -> float:
    return measured[VmmKind.THIN][name] / measured[VmmKind.QEMU][name]


def build_ratio_lines(ratios: dict[str, dict[str, float]]) -> list[str]:
    """What a person reads."""
    return [
        f"  {f'{group}.{name}':36} {value:6.3f}   thin ÷ QEMU"
        for group, jobs in ratios.items()
        for name, value in jobs.items()
    ]
