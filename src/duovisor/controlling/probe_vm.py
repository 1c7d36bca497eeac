"""The main job: the same virtual machine in both designs, its storage verified and measured in each.

Used by ``duovisor demo``, which runs the VM through the service, and by the benchmarks, so that all measure
the same thing.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.errors import PartitionError
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_jobs
from duovisor.controlling.machine import start_machine
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.images.storage_jobs import StorageFigures
    from duovisor.controlling.machine import Machine
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import Design, VirtualMachineSpec

SCRATCH_SERIAL = "scratch"
SCRATCH_MIB = 256
BOOT_TIMEOUT_S = 120.0
GUEST_MEMORY_MIB = 256


@contextmanager
def make_scratch_disk(folder: Path, name: str = "scratch", size_mib: int = SCRATCH_MIB) -> Iterator[Path]:
    """A raw image full of data that is nowhere a hole; removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{os.getpid()}.raw"
    block = os.urandom(1 << 20)
    try:
        with path.open("wb") as file:
            for _ in range(size_mib):
                file.write(block)
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def build_probe_spec(
    name: str, design: Design, image: Image, scratch: Path, cpus: int = 1
) -> VirtualMachineSpec:
    """The VM that is compared: the probe image, one scratch disk, one NIC."""
    document = {
        "name": name,
        "design": design,
        "cpus": cpus,
        "memory_mib": GUEST_MEMORY_MIB,
        "disks": [{"path": str(scratch), "serial": SCRATCH_SERIAL}],
        "nics": [{"network": "user"}],
    }
    return build_spec(add_image(document, image))


@asynccontextmanager
async def boot_probe(
    spec: VirtualMachineSpec, capabilities: HostCapabilities, directories: Directories
) -> AsyncIterator[tuple[Machine, ProbeClient, float]]:
    """Start the VM and wait for its guest's signal; yields machine, guest and the seconds this took."""
    started = time.monotonic()
    async with start_machine(spec, capabilities, directories) as machine:
        async with connect_probe(machine.port_path(PORT_NAME)) as guest:
            await guest.wait_booted(BOOT_TIMEOUT_S)
            yield machine, guest, time.monotonic() - started


async def measure_guest(
    guest: ProbeClient, *, runtime_s: float, progress: Callable[[str], None]
) -> StorageFigures:
    """Verify and measure the scratch disk of a guest that has booted."""
    return await run_jobs(
        guest, find_scratch(guest), runtime_s=runtime_s, size_mib=SCRATCH_MIB, progress=progress
    )


def find_scratch(guest: ProbeClient) -> str:
    """The scratch disk's device in the guest. Raises ``PartitionError`` when it is not there."""
    assert guest.boot_report is not None
    for disk in guest.boot_report.disks:
        if disk.serial == SCRATCH_SERIAL:
            return f"/dev/{disk.name}"
    raise PartitionError("the guest does not see its scratch disk", remedy="see the VM's serial console")
