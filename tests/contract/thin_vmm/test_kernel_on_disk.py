"""A VM that starts the kernel on its own disk, by the manager: what its guest installs, and breaks."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import find_gaps
from tests.contract.thin_vmm.micro_guest import TICKING, build_image

from duovisor.controlling.errors import BootFileError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.thin_vmm.lab import Lab

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs is not installed")

KERNEL = build_image(TICKING)


def write_disk(disk: Path, *kernels: bytes) -> None:
    """A Linux's file system with these kernels, the newest last."""
    root = disk.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("etc", "usr", "var", "boot"):
        (root / name).mkdir(parents=True)
    for number, kernel in enumerate(kernels, start=1):
        (root / f"boot/vmlinuz-{number}").write_bytes(kernel)
        (root / f"boot/initrd.img-{number}").write_bytes(b"nothing")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk, "8m"], check=True)


async def test_each_start_takes_what_is_there_then(lab: Lab) -> None:
    write_disk(lab.disk, KERNEL)
    taken = lab.root / "kernels/vm.vmlinuz"
    async with lab.managed() as manager:
        await lab.define(manager, kernel={"disk": 0})
        await manager.start("vm")
        await lab.wait_ticks(manager, 100)
        assert taken.read_bytes() == KERNEL
        assert not (await manager.get("vm")).status.restart_needed
        await manager.create_snapshot("vm", "one")
        await manager.stop("vm")
        assert not taken.exists()

        newer = KERNEL + b"newer"
        write_disk(lab.disk, KERNEL, newer)
        await manager.start("vm")
        assert taken.read_bytes() == newer
        await manager.stop("vm")

        write_disk(lab.disk)
        with pytest.raises(BootFileError, match="there is no kernel with a RAM disk on disk0 of vm"):
            await manager.start("vm")
        assert (await manager.get("vm")).status.state is State.STOPPED
        said = await manager.read_console_log("vm", 1 << 20)
        await manager.restore_snapshot("vm", "one")  # whose disk has one
        assert taken.read_bytes() == KERNEL
        after = await lab.wait_ticks(manager, len(said) + 100)
        assert find_gaps(after[len(said) :]) == 0
        await manager.stop("vm")
        assert not taken.exists()
