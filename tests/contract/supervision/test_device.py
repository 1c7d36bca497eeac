"""Drivers of one device, real ones, under their supervisor: who serves after whose end, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.description import Duty
from duovisor.controlling.supervision.adoption import adopt_crew, adopt_image
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.controlling.supervision.records import DeviceState, DriverEventKind
from duovisor.spec.vm import DiskSpec, DriverFailure

if TYPE_CHECKING:
    from .conftest import Stage

KINDS = DriverEventKind


def kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    assert pid is not None
    os.kill(pid, number)


async def test_the_spare_takes_over_and_has_a_spare_again(stage: Stage) -> None:
    device = stage.build_device()
    await device.start()
    for count in range(1, 6):
        spare = await stage.wait_spare()
        await stage.write(8 * count, bytes([count]) * 4096)
        kill(device.describe().pid)
        assert await stage.read(8 * count) == bytes([count]) * 4096
        await stage.wait_told(KINDS.RECOVERED, count)
        assert device.describe().pid == spare
    assert device.describe().deaths == 5
    assert "was killed by SIGKILL" in (await stage.wait_told(KINDS.DIED)).message
    await stage.wait_spare()
    assert sorted(each.duty for each in stage.recorded) == [Duty.ACTIVE, Duty.SPARE]


async def test_both_die_and_the_session_goes_on(stage: Stage) -> None:
    device = stage.build_device()
    await device.start()
    await stage.read()
    for count in range(1, 4):
        await stage.wait_spare()
        for pid in device.pids[::-1]:
            kill(pid)
        assert await stage.read() == stage.image.read_bytes()[:4096]
        told = await stage.wait_told(KINDS.RECOVERED, count)
        assert "a new one goes on" in told.message


async def test_a_spare_that_dies_is_replaced_without_a_word(stage: Stage) -> None:
    device = stage.build_device()
    await device.start()
    first = await stage.wait_spare()
    kill(first)
    async with asyncio.timeout(120):
        while await stage.wait_spare() == first:
            await asyncio.sleep(0.01)
    assert stage.events == []


async def test_a_hung_driver_is_ended(stage: Stage) -> None:
    device = stage.build_device(hang_s=1.0)
    await device.start()
    await stage.read()
    await stage.wait_spare()
    kill(device.describe().pid, signal.SIGSTOP)
    assert await stage.read() == stage.image.read_bytes()[:4096]
    assert "queue 0 made no progress" in (await stage.wait_told(KINDS.HUNG)).message
    await stage.wait_told(KINDS.RECOVERED)


async def test_replaced_on_demand(stage: Stage) -> None:
    device = stage.build_device()
    await device.start()
    await stage.read()
    for latest in (False, True, False):
        before = device.describe().pid
        done = await device.replace(latest=latest)
        assert done.old_pid == before
        assert device.describe().pid == done.new_pid != before
        assert await stage.read() == stage.image.read_bytes()[:4096]
    assert [event.kind for event in stage.events] == [KINDS.REPLACED] * 3


@pytest.mark.parametrize("on_failure", DriverFailure)
async def test_given_up_and_tried_again(stage: Stage, on_failure: DriverFailure) -> None:
    device = stage.build_device(on_failure)
    device.backoff = Backoff(deaths_max=1)
    await device.start()
    await stage.read()
    async with asyncio.timeout(120):
        while not device.failed.is_set():
            for pid in device.pids:
                with contextlib.suppress(ProcessLookupError):
                    kill(pid)
            await asyncio.sleep(0.02)
    told = await stage.wait_told(KINDS.FAILED)
    assert "duovisor driver restart vm disk0 tries again" in told.message
    assert device.describe().state is DeviceState.FAILED
    if on_failure is DriverFailure.REPORT:
        with pytest.raises(OSError, match="status 1"):
            await stage.read()
        assert not stage.paused
        waiting = None
    else:
        assert stage.paused
        waiting = asyncio.create_task(stage.read())
        await asyncio.sleep(0.2)
        assert not waiting.done()
    await device.replace(latest=False)
    assert not stage.paused
    assert device.describe().state is DeviceState.RUNNING
    content = stage.image.read_bytes()[:4096]
    assert waiting is None or await waiting == content  # asked while nobody served, and answered after all
    assert await stage.read() == content


async def test_another_owner_adopts_the_drivers(stage: Stage) -> None:
    first = stage.build_device()
    await first.start()
    await stage.read()
    await stage.wait_spare()
    left, pids = list(stage.recorded), first.pids
    await first.detach()
    second = stage.build_device()
    await adopt_crew(second.crew, left, stage)
    second.supervise()
    assert second.pids == pids
    kill(pids[0])
    assert await stage.read() == stage.image.read_bytes()[:4096]
    await stage.wait_told(KINDS.RECOVERED)
    assert second.describe().pid == pids[1]
    assert await stage.wait_spare() not in pids
    for pid in second.pids[::-1]:  # the new owner holds the session, too
        kill(pid)
    assert await stage.read() == stage.image.read_bytes()[:4096]


@pytest.mark.parametrize("dead", [(0,), (1,), (0, 1)])
async def test_drivers_that_died_without_an_owner(stage: Stage, dead: tuple[int, ...]) -> None:
    first = stage.build_device()
    await first.start()
    await stage.read()
    await stage.wait_spare()
    left, pids = list(stage.recorded), first.pids
    await first.detach()
    for index in dead:
        kill(pids[index])
    await asyncio.sleep(0.2)
    second = stage.build_device()
    await adopt_crew(second.crew, left, stage)
    second.supervise()
    assert await stage.read() == stage.image.read_bytes()[:4096]
    await stage.wait_spare()


async def test_the_image_is_taken_from_a_living_driver(stage: Stage) -> None:
    device = stage.build_device()
    await device.start()
    taken = adopt_image(DiskSpec(path=str(stage.image)), device.pids)
    try:
        assert os.path.samestat(os.fstat(taken.descriptor), stage.image.stat())
        assert not os.get_inheritable(taken.descriptor)
    finally:
        taken.close()
    opened = adopt_image(DiskSpec(path=str(stage.image)), [])
    opened.close()
