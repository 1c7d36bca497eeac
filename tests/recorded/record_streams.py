"""Record ``streams``: ``python -m tests.recorded.record_streams [QEMU]``, as root; about a minute.

Each guest is booted by a real QEMU and saved as a move would save it.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

from tests.bare_vmm import Program, start_bare_vmm
from tests.networks import BRIDGE, enter_network
from tests.recorded.streams import RECORDED, stream_path

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME, build_probe_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine_networks import open_taps
from duovisor.directories import find_directories
from duovisor.hardware.qemu import find_qemu
from duovisor.hardware.qemu_probe import probe_qemu
from duovisor.hypervisor.migration import stream
from duovisor.hypervisor.migration.description import PAGE_BYTES
from duovisor.hypervisor.migration.handover import prepare, save
from duovisor.hypervisor.migration.reader import Reader
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from duovisor.controlling.images.image import Image
    from duovisor.spec.vm import Design, VirtualMachineSpec

MEMORY_MIB = 256
DISK_BYTES = 16 << 20
TOUCH = "for d in /dev/vd?; do dd if=$d of=/dev/null bs=64k count=8; done; ip link set eth0 up"


def build_case_spec(design: Design, case: str, folder: Path, image: Image) -> VirtualMachineSpec:
    """A case's specification; its disks are files in ``folder``."""
    devices: dict[str, dict[str, Any]] = {
        "disks": {"disks": [{"path": str(folder / name), "serial": name} for name in ("first", "second")]},
        "bridged": {"disks": [{"path": str(folder / "first")}], "nics": [{"bridge": BRIDGE}]},
        "user": {"disks": [{"path": str(folder / "first")}], "nics": [{}], "devices": [{"driver": "rng"}]},
    }
    document = {"name": "recorded", "memory_mib": MEMORY_MIB, "design": design, **devices[case]}
    spec = build_spec(add_image(document, image))
    return spec.model_copy(update={"disks": spec.disks[: len(devices[case]["disks"])]})  # without the image's


async def record(design: Design, case: str, image: Image, program: Program) -> bytes:
    """Boot a case's guest and save it."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dvr-", dir="/dev/shm")))
        for name, size in (("first", DISK_BYTES), ("second", DISK_BYTES), ("memory", MEMORY_MIB << 20)):
            with (folder / name).open("wb") as file:
                file.truncate(size)
        spec = build_case_spec(design, case, folder, image)
        taps = open_taps(spec, stack.enter_context(ExitStack()))
        vmm = await stack.enter_async_context(
            start_bare_vmm(spec, program, folder / "vmm", folder / "memory", taps)
        )
        await vmm.qmp.cont()
        async with connect_probe(vmm.port_path(PORT_NAME)) as probe:
            await probe.wait_booted(90)
            await probe.run(TOUCH, timeout_s=30)
        await prepare(vmm.qmp)
        return blank_pages(await save(vmm.qmp))


class NotingReader(Reader):
    """Notes where the pages are that it passes over."""

    pages: ClassVar[list[int]] = []

    def skip(self, count: int, what: str) -> int:
        start = super().skip(count, what)
        if (count, what) == (PAGE_BYTES, "memory page"):
            self.pages.append(start)
        return start


def blank_pages(data: bytes) -> bytes:
    """The stream with zeros in its memory pages; the header before each of them stays."""
    NotingReader.pages.clear()
    with patch.object(stream, "Reader", NotingReader):
        stream.parse_stream(data)
    blank = bytearray(data)
    for start in NotingReader.pages:
        blank[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
    return bytes(blank)


async def main() -> None:
    """Record every case with one QEMU."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else find_qemu()
    program = Program(path, probe_qemu(path))
    image = build_probe_image(find_directories(), print)
    recorded = ".".join(map(str, program.abilities.version[:2]))
    for version, design, case in RECORDED:
        if version == recorded:
            data = await record(design, case, image, program)
            stream_path(version, design, case).write_bytes(gzip.compress(data, 9, mtime=0))
            print(version, design, case, len(data), "bytes")


if __name__ == "__main__":
    with enter_network():
        asyncio.run(main())
