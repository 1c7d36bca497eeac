"""A VM whose disk is full again before it was told that it went on is not left standing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from duovisor.controlling import full_disks
from duovisor.controlling.full_disks import FullDisks
from duovisor.controlling.supervision.records import DriverEventKind
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    import pytest

    from duovisor.controlling.machine import Machine

TRIES = 3


class Vmm:
    """Stops again at once, ``TRIES`` times; what it says of that comes before it says that it goes on."""

    def __init__(self) -> None:
        self.state = State.PAUSED
        self.resumed = 0
        self.note: Any = None
        self.lifecycle = self

    async def resume(self) -> None:
        self.resumed += 1
        if self.resumed <= TRIES:
            await self.note("disk1")
        else:
            self.state = State.RUNNING

    async def wait_for(self, states: object, *, timeout_s: float) -> None:
        assert self.state is State.PAUSED


async def test_a_disk_that_is_full_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disks, "LOOK_S", 0.0)
    monkeypatch.setattr(FullDisks, "_has_room", lambda _: True)
    monkeypatch.setattr(FullDisks, "_describe", lambda *_: "")
    vmm, told = Vmm(), list[DriverEventKind]()
    current = SimpleNamespace(
        spec=SimpleNamespace(design=Design.MONOLITHIC), full=(), vmm=vmm, keepers={}, devices={}
    )
    machine = SimpleNamespace(current=current, vmm=vmm, name="web", write=lambda: None)
    full = FullDisks(cast("Machine", machine), lambda event: told.append(event.kind))
    vmm.note = full.note
    assert await full.note("disk1")
    async with asyncio.timeout(60):
        while vmm.state is not State.RUNNING or current.full:
            await asyncio.sleep(0)
    assert vmm.resumed == TRIES + 1
    assert current.full == ()
    await full.close()
    assert told[0] is DriverEventKind.FULL
