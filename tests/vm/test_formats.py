"""A guest on images of every format; what it wrote is what QEMU's own tools find there afterwards."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.spec.vm import Design, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm
MESSAGE = b"written-by-guest\n"


def run_qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def convert(path: Path, disk_format: DiskFormat, target: Path) -> bytes:
    run_qemu_img("convert", "-f", disk_format, "-O", "raw", path, target)
    return target.read_bytes()


both_designs = pytest.mark.parametrize("design", Design)


async def end(guest: Guest) -> None:
    """Shut down, and end what holds the images besides the VMM."""
    assert await guest.machine.shut_down()
    await guest.machine.clean_up()


FORMATS = [each for each in DiskFormat if each is not DiskFormat.RAW]


@pytest.mark.parametrize(
    ("disk_format", "design"),
    [(each, Design.MICROKERNELIZED) for each in FORMATS] + [(DiskFormat.QCOW2, Design.MONOLITHIC)],
)
async def test_guest_reads_and_writes(
    boot: Boot, scratch: Path, disk_format: DiskFormat, design: Design
) -> None:
    path = scratch.with_suffix(f".{disk_format}")
    run_qemu_img("convert", "-f", "raw", "-O", disk_format, scratch, path)
    guest = await boot(design, disks=[{"path": str(path), "format": disk_format}])
    digest = hashlib.sha256(scratch.read_bytes()).hexdigest()
    assert (await guest.output("sha256sum < /dev/vda")).split()[0] == digest
    assert await run_verify(guest.probe, "/dev/vda", size_mib=16) == "ok"
    await guest.output("echo written-by-guest | dd of=/dev/vda bs=512 seek=100000 conv=notrunc,sync,fsync")
    await end(guest)
    content = convert(path, disk_format, scratch)
    assert content[100000 * 512 :].startswith(MESSAGE)


@both_designs
async def test_guest_on_a_chain(boot: Boot, scratch: Path, design: Design) -> None:
    middle, top = scratch.with_name("middle"), scratch.with_name("top")
    run_qemu_img("create", "-f", "qcow2", "-b", scratch.name, "-F", "raw", middle)
    run_qemu_img("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    before = [path.read_bytes() for path in (scratch, middle)]
    guest = await boot(design, disks=[{"path": str(top), "format": "qcow2"}])
    digest = hashlib.sha256(before[0]).hexdigest()
    assert (await guest.output("sha256sum < /dev/vda")).split()[0] == digest
    await guest.output("echo written-by-guest | dd of=/dev/vda bs=512 seek=7 conv=notrunc,sync,fsync")
    await end(guest)
    assert [path.read_bytes() for path in (scratch, middle)] == before
    assert convert(top, DiskFormat.QCOW2, scratch.with_name("all"))[7 * 512 :].startswith(MESSAGE)


@both_designs
async def test_space_that_the_guest_discards_goes_back(boot: Boot, scratch: Path, design: Design) -> None:
    """Both a raw image and a qcow2 one shrink, if QEMU passes the guest's discards on."""
    path = scratch.with_suffix(".qcow2")
    run_qemu_img("convert", "-f", "raw", "-O", "qcow2", scratch, path)
    disks = [{"path": str(scratch)}, {"path": str(path), "format": "qcow2"}]
    full = [each.stat().st_blocks for each in (scratch, path)]
    guest = await boot(design, disks=disks)
    await guest.output("blkdiscard /dev/vda && blkdiscard /dev/vdb && sync")
    await end(guest)
    assert all(
        each.stat().st_blocks < before // 2 for each, before in zip((scratch, path), full, strict=True)
    )
