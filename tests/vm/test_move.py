"""A running VM moves to another VMM: of the other design, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.moving.move import move
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.vm.conftest import Guest

    from duovisor.hardware.capabilities import HostCapabilities

    Boot = Callable[..., Awaitable[Guest]]

THERE_AND_BACK = (Design.MICROKERNELIZED, Design.MONOLITHIC)


async def test_there_and_back(boot: Boot, scratch: Path, capabilities: HostCapabilities) -> None:
    guest = await boot(Design.MONOLITHIC, disks=[{"path": str(scratch)}])
    machine = guest.machine
    assert await guest.output("echo here > /tmp/mark; cat /tmp/mark") == "here\n"
    for design in THERE_AND_BACK * 2:
        report = await move(machine, design, capabilities)
        assert machine.vmm.state is State.RUNNING
        assert (report.new_design, machine.spec.design) == (design, design)
        async with connect_probe(machine.port_path(PORT_NAME)) as probe:
            assert (await probe.run("cat /tmp/mark", timeout_s=30)).output == b"here\n"
            assert await run_verify(probe, "/dev/vda", size_mib=8) == "ok"
    assert machine.current.number == 5
