"""The same guest in both designs: it boots, its data is right, and it ends as it should."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import BOOT_TIMEOUT_S

from duovisor.controlling.description import describe_machine, read_description
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.machine import start_machine
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm
both_designs = pytest.mark.parametrize("design", list(Design))


def disks(scratch: Path, **settings: Any) -> list[dict[str, Any]]:
    return [{"path": str(scratch), "serial": "scratch", **settings}]


@both_designs
async def test_guest_reads_and_writes_its_disk(boot: Boot, scratch: Path, design: Design) -> None:
    guest = await boot(design, disks=disks(scratch))
    digest = hashlib.sha256(scratch.read_bytes()).hexdigest()
    assert (await guest.output("sha256sum < /dev/vda")).split()[0] == digest
    await guest.output("echo written-by-guest | dd of=/dev/vda bs=512 seek=7 conv=notrunc,sync,fsync")
    assert scratch.read_bytes()[7 * 512 :].startswith(b"written-by-guest\n")
    assert await run_verify(guest.probe, "/dev/vda", size_mib=32) == "ok"
    assert await guest.machine.shut_down()
    assert guest.machine.vmm.lifecycle.history == [
        State.DEFINED, State.STARTING, State.RUNNING, State.STOPPING, State.STOPPED,
    ]  # fmt: skip


@both_designs
async def test_life_cycle_of_a_real_vmm(
    boot: Boot, scratch: Path, folders: Directories, design: Design
) -> None:
    guest = await boot(design, disks=disks(scratch))
    vmm = guest.machine.vmm
    await vmm.pause()
    with pytest.raises(WrongStateError, match="cannot pause"):
        await vmm.pause()
    await vmm.resume()
    assert (await guest.output("echo alive")).strip() == "alive"
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"
    guest.probe.boot_report = None
    await vmm.reset()
    await guest.probe.wait_booted(BOOT_TIMEOUT_S)
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"
    assert read_description(folders.vms, guest.machine.spec.name).processes
    await vmm.kill()
    assert vmm.lifecycle.history[3:] == [State.PAUSED, State.RUNNING, State.STOPPING, State.STOPPED]


@both_designs
async def test_killed_vmm_is_a_crash(boot: Boot, scratch: Path, design: Design) -> None:
    guest = await boot(design, disks=disks(scratch))
    os.kill(describe_machine(guest.machine).processes[0].pid, 9)
    assert await guest.machine.vmm.wait_ended(timeout_s=60) is State.CRASHED


@both_designs
async def test_read_only_disk_refuses_writes(boot: Boot, scratch: Path, design: Design) -> None:
    before = hashlib.sha256(scratch.read_bytes()).digest()
    guest = await boot(design, disks=disks(scratch, read_only=True))
    done = await guest.probe.run("echo x | dd of=/dev/vda conv=fsync; cat /sys/block/vda/ro", timeout_s=30)
    assert done.output.decode().split()[-1] == "1"
    assert hashlib.sha256(scratch.read_bytes()).digest() == before


@both_designs
async def test_two_queues_and_no_page_cache(boot: Boot, scratch: Path, design: Design) -> None:
    guest = await boot(design, cpus=2, disks=disks(scratch, queues=2, cache="none"))
    assert (await guest.output("ls /sys/block/vda/mq")).split() == ["0", "1"]
    assert await run_verify(guest.probe, "/dev/vda", size_mib=16) == "ok"


@both_designs
async def test_bios_boots_from_a_disk(
    folders: Directories, capabilities: HostCapabilities, design: Design
) -> None:
    """SeaBIOS reads a boot sector through the design's storage driver; the sector prints to the console."""
    disk = folders.state / "boot.raw"
    disk.write_bytes(build_boot_sector(b"boot-sector-runs"))
    document = {"name": "bios", "design": design, "memory_mib": 32, "disks": [{"path": str(disk)}]}
    async with start_machine(build_spec(document), capabilities, folders) as machine:
        printed = asyncio.Event()
        machine.console.attach(
            lambda _: printed.set() if b"boot-sector-runs" in machine.console.scrollback else None
        )
        async with asyncio.timeout(300):
            await printed.wait()


def build_boot_sector(message: bytes) -> bytes:
    """A bootable disk: ds = 0, dx = COM1, si = the message; lodsb and out until the zero; hlt."""
    code = bytes.fromhex("31c0 8ed8 baf803 be157c ac 84c0 7403 ee ebf8 f4 ebfd")
    sector = (code + message + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(1 << 20, b"\0")  # SeaBIOS passes over a disk of one sector
