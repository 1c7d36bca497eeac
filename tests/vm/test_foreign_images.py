"""Disks of other platforms, imported and booted in each design; every maker is in ``tests/unit/storage``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.foreign_images import MAKERS, build_disk
from tests.vm.service_host import Cli, Rest
from tests.vm.waiting import wait_said

if TYPE_CHECKING:
    from tests.vm.service_host import ServiceHost

pytestmark = pytest.mark.vm

# one that is not qemu-img's, where there is one
BOOTED = (
    ("monolithic", ("vmdk-stream-by-vmdkstream", "vmdk-stream-by-qemu-img")),
    ("microkernelized", ("vhdx-by-qemu-img",)),
)


def test_imported_disks_boot(host: ServiceHost) -> None:
    disk = host.directories.state / "disk.raw"
    disk.write_bytes(build_disk("this was read from the last sector"))
    cli, rest = Cli(host, disk), Rest(host, {})
    for design, makers in BOOTED:
        maker = next(maker for name in makers if not (maker := MAKERS[name]).why_not())
        image = disk.with_name(f"{design}.image")
        maker.make(disk, image)
        assert "qcow2" in cli.run("volume", "upload", str(image), design)
        cli.run("vm", "create", "--name", design, "--design", design, "--vmm", "qemu", "--memory", "32M",
                "--disk", f"volume={design}", "--start")  # fmt: skip
    for design, _ in BOOTED:
        wait_said(rest, design, "from the last sector", 1)
        rest.act(design, "stop")
        rest.delete(design)
        cli.run("volume", "delete", design)
