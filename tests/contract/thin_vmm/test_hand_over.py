"""A guest goes from one thin VMM to the next, on the same memory, by the code that moves guests of QEMU."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm import micro_guest as guest
from tests.contract.thin_vmm.micro_guest import TICKING

from duovisor.hypervisor.errors import QmpError
from duovisor.hypervisor.migration import handover
from duovisor.hypervisor.migration.errors import HandoverError
from duovisor.hypervisor.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.contract.thin_vmm.conftest import StartVmm
    from tests.contract.thin_vmm.micro_guest import MicroVmm


@asynccontextmanager
async def connected(vmm: MicroVmm) -> AsyncIterator[Qmp]:
    """The client that drives a VMM, in the place of the test's own."""
    vmm.disconnect()
    qmp = Qmp("micro")
    await qmp.connect(vmm.path)
    yield qmp
    await qmp.disconnect()


@pytest.mark.parametrize("cpus", [1, 16])
@pytest.mark.parametrize("stopped", [True, False])
async def test_a_guest_goes_on_in_the_next_vmm(start_vmm: StartVmm, cpus: int, stopped: bool) -> None:
    old = start_vmm(TICKING, cpus=cpus)
    old.ask("cont")
    old.wait_said(b"abcdefghijk")
    new = start_vmm(guest.halt(), cpus=cpus, control="next", incoming=True)
    assert new.ask("query-status")["status"] == "inmigrate"
    async with connected(old) as source, connected(new) as target:
        for qmp in (source, target):
            await handover.prepare(qmp)
        if stopped:
            await source.stop()
        state = await handover.save(source)
        assert await source.query_status() == "paused"
        await handover.load(target, state)
        await target.cont()
        old.process.kill()
        last = (old.read_rest() or b"k")[-1]
        new.wait_said(bytes(((last - ord("a") + 1) % 16 + ord("a"),)))
        new.wait_said(b"abcdefghijklmnop")


async def test_a_guest_whose_successor_failed_goes_on(start_vmm: StartVmm) -> None:
    old = start_vmm(TICKING)
    old.ask("cont")
    old.wait_said(b"abcd")
    new = start_vmm(guest.halt(), control="next", incoming=True)
    async with connected(old) as source, connected(new) as target:
        state = await handover.save(source)
        with pytest.raises(HandoverError, match="cannot load the state: thin VMM: the saved state cannot be"):
            await handover.load(target, state[:-100], last_words=new.last_words)
        assert new.wait() == 1
        await source.cont()
        old.wait_said(b"abcdefghijklmnop")


async def test_a_vmm_that_runs_a_guest_takes_no_other(start_vmm: StartVmm) -> None:
    async with connected(start_vmm(guest.spin())) as qmp:
        with pytest.raises(QmpError, match="not started to take on a state"):
            await qmp.migrate_incoming("fd:x")
        with pytest.raises(QmpError, match="no descriptor was sent as x"):
            await qmp.migrate("fd:x")
        with pytest.raises(QmpError, match="goes only through a descriptor"):
            await qmp.migrate("exec:cat")


async def test_a_successor_without_a_guest_neither_runs_nor_resets(start_vmm: StartVmm) -> None:
    start_vmm(guest.say("mine") + guest.spin())
    new = start_vmm(guest.halt(), control="next", incoming=True)
    async with connected(new) as qmp:
        with pytest.raises(QmpError, match="cannot go on: it is in inmigrate"):
            await qmp.cont()
        with pytest.raises(QmpError, match="still another VMM's"):
            await qmp.system_reset()
