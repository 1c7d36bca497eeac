"""Processors that come to a running guest, in both designs; they move with it like those of its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.moving.move import move
from duovisor.controlling.plugging.processors import add_processors
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = pytest.mark.vm

FOLDER = "/sys/devices/system/cpu/cpu{}/online"
SWITCH_ON = f"for i in $(seq 300); do [ -e {FOLDER} ] && break; sleep 0.1; done; echo 1 > {FOLDER}; nproc"
RUN_THERE = "taskset -c {} sh -c 'i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; echo $i'"


async def output(guest: ProbeClient, command: str) -> str:
    done = await guest.run(command, timeout_s=90)
    assert done.exit == 0, (command, done.output)
    return done.output.decode()


async def use_new(guest: ProbeClient, core: int) -> None:
    """Switch a processor on, and have it do something."""
    assert await output(guest, SWITCH_ON.format(core, core)) == f"{core + 1}\n"
    assert await output(guest, RUN_THERE.format(core)) == "1000\n"


async def test_processors_come_and_move(boot: Boot, capabilities: HostCapabilities) -> None:
    guest = await boot(Design.MONOLITHIC, cpus=1, cpus_max=3)
    machine = guest.machine
    await add_processors(machine, 2)
    assert machine.spec.cpus == 2
    await use_new(guest.probe, 1)
    await move(machine, Design.MICROKERNELIZED, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await output(probe, RUN_THERE.format(1)) == "1000\n"
        await add_processors(machine, 3)
        await use_new(probe, 2)
    await move(machine, Design.MONOLITHIC, capabilities)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert await output(probe, "nproc") == "3\n"
        assert await output(probe, RUN_THERE.format(2)) == "1000\n"
    assert (machine.vmm.state, machine.spec.cpus) == (State.RUNNING, 3)
    assert await machine.vmm.count_processors() == 3
