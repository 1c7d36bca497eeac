"""The same guest in both designs: it boots, sees the same hardware, and its data is right."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.description import describe_machine, read_description
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.machine import start_machine
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm
both_designs = pytest.mark.parametrize("design", list(Design))


def disks(scratch: Path, **settings: Any) -> list[dict[str, Any]]:
    return [{"path": str(scratch), "serial": "scratch", **settings}]


def held_files(pid: int) -> set[tuple[int, int]]:
    """Device and inode of every regular file or block device that a process holds open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        status = link.stat()
        if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found.add((status.st_dev, status.st_ino))
    return found


def identity(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


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


async def test_hardware_is_the_same_to_the_guest(boot: Boot, scratch: Path) -> None:
    look = (
        "for d in /sys/bus/pci/devices/*; do echo $d $(cat $d/vendor $d/device $d/class); done;"
        "for d in /sys/block/vd*; do echo $d $(cat $d/size $d/serial $d/queue/max_segments"
        " $d/queue/logical_block_size $d/queue/write_cache $d/queue/discard_max_bytes); ls $d/mq; done;"
        "cat /sys/class/net/eth0/address /proc/cmdline"
    )
    seen = {}
    nics = [{"mac": "52:54:00:00:00:07"}]
    for design in Design:
        guest = await boot(design, disks=disks(scratch, queues=2), nics=nics, cpus=2)
        seen[design] = await guest.output(look)
        await guest.machine.shut_down()
    assert seen[Design.MONOLITHIC] == seen[Design.MICROKERNELIZED]


@both_designs
async def test_only_the_monolithic_vmm_holds_the_image(boot: Boot, scratch: Path, design: Design) -> None:
    guest = await boot(design, disks=disks(scratch), nics=[{}])
    description = describe_machine(guest.machine)
    vmm, *others = description.processes
    assert vmm.role == "vmm"
    assert (identity(scratch) in held_files(vmm.pid)) is (design is Design.MONOLITHIC)
    links = [os.readlink(link) for link in Path(f"/proc/{vmm.pid}/fd").iterdir()]
    assert not [link for link in links if link.startswith(("/dev/net/tun", "/dev/vhost"))]
    drivers = [process for process in others if process.role == "storage driver"]
    assert len(drivers) == (0 if design is Design.MONOLITHIC else 4)  # each disk's driver has a spare
    for driver in drivers:
        assert (identity(scratch) in held_files(driver.pid)) is (driver.device == "disk0")


async def test_microkernelized_processes_reach_nothing_of_the_host(boot: Boot, scratch: Path) -> None:
    guest = await boot(Design.MICROKERNELIZED, disks=disks(scratch))
    anatomy = read_anatomy(describe_machine(guest.machine))
    confined = [process for process in anatomy.processes if process.role in ("vmm", "storage driver")]
    assert len(confined) >= 3
    for process in confined:
        assert not [access for access in process.host_access if access.startswith(("host", "device"))]
        assert "no capabilities" in process.confinement
        assert "no new privileges" in process.confinement
        assert "uid 0" not in process.confinement
        assert Path(f"/proc/{process.pid}/root/etc/passwd").exists() is False
        assert [each for each in process.confinement if each.startswith("at most ")]
    vmm = next(process for process in confined if process.role == "vmm")
    assert vmm.host_access == ("guest memory",)
    assert vmm.drivers == ()


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
    await guest.probe.wait_booted(90)
    assert await run_verify(guest.probe, "/dev/vda", size_mib=4) == "ok"
    assert read_description(folders.vms, guest.machine.spec.name).processes
    await vmm.kill()
    assert vmm.lifecycle.history[3:] == [State.PAUSED, State.RUNNING, State.STOPPING, State.STOPPED]


@both_designs
async def test_killed_vmm_is_a_crash(boot: Boot, scratch: Path, design: Design) -> None:
    guest = await boot(design, disks=disks(scratch))
    os.kill(describe_machine(guest.machine).processes[0].pid, 9)
    assert await guest.machine.vmm.wait_ended(timeout_s=10) is State.CRASHED


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
async def test_user_network_reaches_the_host_and_back(boot: Boot, design: Design) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 12\r\n\r\nfrom-the-host")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    forwarded = await asyncio.start_server(answer, "127.0.0.1", 0)
    port, host_port = (s.sockets[0].getsockname()[1] for s in (server, forwarded))
    forwarded.close()
    await forwarded.wait_closed()
    guest = await boot(design, nics=[{"forward": [f"{host_port}:7000"]}])
    await guest.output("i=0; until ip route | grep -q default; do sleep 0.2; i=$((i+1)); [ $i -lt 50 ]; done")
    assert "from-the-hos" in await guest.output(f"wget -q -O - http://10.0.2.2:{port}/")
    await guest.output(
        "(while :; do (sleep 1; echo from-the-guest; sleep 1) | nc -l -p 7000; done) >/dev/null 2>&1 &"
    )
    await asyncio.sleep(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    writer.write(b"hello\n")  # Debian 12's passt passes nothing on before the client has spoken
    assert await asyncio.wait_for(reader.readline(), 20) == b"from-the-guest\n"
    writer.close()
    server.close()


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
        async with asyncio.timeout(60):
            await printed.wait()


def build_boot_sector(message: bytes) -> bytes:
    """A bootable disk: ds = 0, dx = COM1, si = the message; lodsb and out until the zero; hlt."""
    code = bytes.fromhex("31c0 8ed8 baf803 be157c ac 84c0 7403 ee ebf8 f4 ebfd")
    sector = (code + message + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(1 << 20, b"\0")  # SeaBIOS passes over a disk of one sector
