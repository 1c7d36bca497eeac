"""Storage of our two designs and of what people run by hand, in five guests that are measured in turn."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.others_figures import build_ratios
from bench.others_vmm import DISK_BACKENDS, boot_bare

from duovisor.controlling.images.storage_jobs import JOBS, run_job
from duovisor.controlling.probe_vm import (
    SCRATCH_MIB,
    SCRATCH_SERIAL,
    boot_probe,
    build_probe_spec,
    make_scratch_disk,
)
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

# what is set against what
PAIRS = (
    ("monolithic", "qemu"),
    ("microkernelized", "qsd_vhost_user"),
    ("microkernelized", "qsd_nbd"),
    ("microkernelized", "qemu"),
)


async def measure_storage(
    image: Image, capabilities: HostCapabilities, directories: Directories, rounds: int, seconds: float
) -> dict[str, Any]:
    """Every job in every guest, ``rounds`` times, each round in the other order."""
    async with AsyncExitStack() as stack:
        guests: dict[str, ProbeClient] = {}
        for design in Design:
            disk = stack.enter_context(make_scratch_disk(directories.state, f"others-{design}"))
            spec = build_probe_spec(f"others-{design}", design, image, disk)
            _, guests[str(design)], _ = await stack.enter_async_context(
                boot_probe(spec, capabilities, directories)
            )
            print(f"{design}: up")
        for build in DISK_BACKENDS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dv-")))
            disk = stack.enter_context(make_scratch_disk(directories.state, build.__name__))
            backend = build(disk, folder)
            guests[backend.name] = await stack.enter_async_context(
                boot_bare(image, capabilities, folder, backend)
            )
            print(f"{backend.name}: up")
        figures: dict[str, dict[str, list[float]]] = {job.name: {name: [] for name in guests} for job in JOBS}
        for number in range(rounds):
            for job in JOBS:
                for name in list(guests) if number % 2 == 0 else reversed(guests):
                    figure = await run_job(
                        guests[name], find_disk(guests[name]), job, runtime_s=seconds, size_mib=SCRATCH_MIB
                    )
                    figures[job.name][name].append(round(figure, 1))
                shown = "  ".join(f"{name} {values[-1]:,.0f}" for name, values in figures[job.name].items())
                print(f"round {number + 1}: {job.name:18} {shown}", flush=True)
    return {"ratio": build_ratios(figures, PAIRS), "figures": figures}


def find_disk(guest: ProbeClient) -> str:
    """The disk to measure: by its serial, or (a vhost-user-blk of QEMU's has none) by its size."""
    assert guest.boot_report is not None
    for disk in guest.boot_report.disks:
        if disk.serial == SCRATCH_SERIAL or disk.size_bytes == SCRATCH_MIB << 20:
            return f"/dev/{disk.name}"
    raise SystemExit("the guest does not see its disk")
