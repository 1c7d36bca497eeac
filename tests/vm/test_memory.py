"""Memory that comes to a running guest, in both designs; it moves with it, and drivers reach it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.moving.move import move
from duovisor.controlling.plugging.memory import UNSEEN, add_memory, check_growth, look_at_memory
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.machine import Machine
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm

TOTAL = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo"
BLOCKS = "/sys/devices/system/memory/memory*/state"
SWITCH_ON = f"for f in {BLOCKS}; do grep -q online $f || echo online > $f; done"
# what comes lies above 4 GiB, in a zone that Linux takes memory from first
FREE = "awk '/zone +Normal/ {found = 1} found && /pages free/ {print $3; exit}' /proc/zoneinfo"
FILL = "mkdir /new && mount -t tmpfs new /new && dd if=/dev/urandom of=/new/file bs=1M count=16 2>/dev/null"
READ = "md5sum < /new/file"
WRITE_AND_READ = (
    "dd if=/new/file of=/dev/vda bs=4M oflag=direct 2>/dev/null; "
    "dd if=/dev/vda bs=4M count=4 iflag=direct 2>/dev/null | md5sum"
)


async def output(guest: ProbeClient, command: str) -> str:
    done = await guest.run(command, timeout_s=180)
    assert done.exit == 0, (command, done.output)
    return done.output.decode()


async def give(machine: Machine, guest: ProbeClient, memory_mib: int, capabilities: HostCapabilities) -> None:
    """More memory, which the guest says it has taken, and switches on."""
    check_growth(machine, memory_mib, capabilities.memory_total_mib)
    await add_memory(machine, memory_mib)
    assert await look_at_memory(machine, 120) == UNSEEN
    await output(guest, SWITCH_ON)
    assert machine.spec.memory_mib == memory_mib


async def test_memory_comes_and_moves(boot: Boot, capabilities: HostCapabilities, scratch: Path) -> None:
    disks = [{"path": str(scratch)}]
    guest = await boot(Design.MICROKERNELIZED, memory_mib=256, memory_max_mib=640, disks=disks)
    machine = guest.machine
    had = int(await output(guest.probe, TOTAL))
    load = asyncio.create_task(run_verify(guest.probe, "/dev/vda", size_mib=4))
    await give(machine, guest.probe, 384, capabilities)
    assert await load == "ok"
    assert int(await output(guest.probe, TOTAL)) == had + 128
    free = int(await output(guest.probe, FREE))
    await output(guest.probe, FILL)
    assert free - int(await output(guest.probe, FREE)) > 2048  # most of it is in what came
    written = await output(guest.probe, READ)
    assert await output(guest.probe, WRITE_AND_READ) == written
    load = asyncio.create_task(run_verify(guest.probe, "/dev/vda", size_mib=4))
    os.kill(machine.devices["disk0"].pids[0], signal.SIGKILL)
    assert await load == "ok"
    await move(machine, Design.MONOLITHIC, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await output(probe, READ) == written
        await give(machine, probe, 640, capabilities)
        assert int(await output(probe, TOTAL)) == had + 384
    await move(machine, Design.MICROKERNELIZED, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await output(probe, WRITE_AND_READ) == written
    assert machine.vmm.state is State.RUNNING
    assert (machine.spec.memory_mib, machine.vmm.plan.modules_mib) == (640, (128, 256))
