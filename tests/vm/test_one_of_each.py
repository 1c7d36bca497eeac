"""A guest of each design, looked at and left as it is: the same from within, another from the host."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.vm.waiting import LISTENS

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.description import describe_machine
from duovisor.spec.vm import Design

from .conftest import booting, lend_folders, make_scratch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from duovisor.controlling.images.image import Image
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Guests = Mapping[Design, Guest]

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]
both_designs = pytest.mark.parametrize("design", list(Design))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(capabilities: HostCapabilities, probe_image: Image) -> AsyncIterator[Guests]:
    """One for all tests of this file."""
    with lend_folders() as folders:
        scratch = make_scratch(folders)
        async with booting(folders, probe_image, capabilities) as boot:
            made = {}
            for design in Design:
                path = shutil.copy(scratch, folders.state / design)
                disks = [{"path": str(path), "serial": "scratch", "queues": 2}]
                nics = [{"mac": "52:54:00:00:00:07", "forward": [f"{find_port()}:7000"]}]
                made[design] = await boot(design, disks=disks, nics=nics, cpus=2)
            yield made


def find_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


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


async def test_hardware_is_the_same_to_the_guest(guests: Guests) -> None:
    look = (
        "for d in /sys/bus/pci/devices/*; do echo $d $(cat $d/vendor $d/device $d/class); done;"
        "for d in /sys/block/vd*; do echo $d $(cat $d/size $d/serial $d/queue/max_segments"
        " $d/queue/logical_block_size $d/queue/write_cache $d/queue/discard_max_bytes); ls $d/mq; done;"
        "cat /sys/class/net/eth0/address /proc/cmdline"
    )
    monolithic, microkernelized = [await guest.output(look) for guest in guests.values()]
    assert monolithic == microkernelized


@both_designs
async def test_only_the_monolithic_vmm_holds_the_image(guests: Guests, design: Design) -> None:
    image = identity(Path(guests[design].machine.spec.disks[0].path))
    description = describe_machine(guests[design].machine)
    vmm, *others = description.processes
    assert vmm.role == "vmm"
    assert (image in held_files(vmm.pid)) is (design is Design.MONOLITHIC)
    links = [os.readlink(link) for link in Path(f"/proc/{vmm.pid}/fd").iterdir()]
    assert not [link for link in links if link.startswith(("/dev/net/tun", "/dev/vhost"))]
    drivers = [process for process in others if process.role == "storage driver"]
    assert len(drivers) == (0 if design is Design.MONOLITHIC else 4)  # each disk's driver has a spare
    for driver in drivers:
        assert (image in held_files(driver.pid)) is (driver.device == "disk0")


async def test_microkernelized_processes_reach_nothing_of_the_host(guests: Guests) -> None:
    anatomy = read_anatomy(describe_machine(guests[Design.MICROKERNELIZED].machine))
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
async def test_user_network_reaches_the_host_and_back(guests: Guests, design: Design) -> None:
    guest = guests[design]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 12\r\n\r\nfrom-the-host")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    host_port = guest.machine.spec.nics[0].forward[0].host_port
    await guest.output(
        "i=0; until ip route | grep -q default; do sleep 0.2; i=$((i+1)); [ $i -lt 600 ]; done"
    )
    assert "from-the-hos" in await guest.output(f"wget -q -O - http://10.0.2.2:{port}/")
    await guest.output(
        "(while :; do (sleep 1; echo from-the-guest; sleep 1) | nc -l -p 7000; done) >/dev/null 2>&1 &"
    )
    await guest.output(LISTENS.format(7000))
    reader, writer = await asyncio.open_connection("127.0.0.1", host_port)
    writer.write(b"hello\n")  # Debian 12's passt passes nothing on before the client has spoken
    assert await asyncio.wait_for(reader.readline(), 120) == b"from-the-guest\n"
    writer.close()
    server.close()
