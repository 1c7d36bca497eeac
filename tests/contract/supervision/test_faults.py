"""Storage drivers that fail on demand, under their supervisor: what the guest sees, and who is told."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling.drivers.faulty import CRASH_STATUS
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.records import DeviceState, DriverEventKind
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Stage

KINDS = DriverEventKind
POISON = 64


class FaultyDisk:
    """Starts the stage's device with drivers that have these faults."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.descriptor = os.memfd_create("faults")

    async def start(
        self,
        on_failure: DriverFailure = DriverFailure.PAUSE,
        *,
        deaths_max: int = 50,
        hang_s: float = 30.0,
        **faults: Any,
    ) -> DeviceSupervisor:
        os.pwrite(self.descriptor, json.dumps(faults).encode(), 0)
        plan = self.stage.build_device(on_failure, hang_s=hang_s).plan
        descriptors = {**plan.descriptors, "faults": self.descriptor}
        faulty = replace(plan, driver="faulty-block", descriptors=descriptors)
        device = DeviceSupervisor(faulty, self.stage, self.stage.factories, self.stage.events.append)
        device.backoff = Backoff(deaths_max=deaths_max)
        self.stage.device = device
        self.stage.client.timeout_s = 120  # of a request that waits for driver after driver
        await device.start()
        return device


@pytest.fixture
def disk(stage: Stage) -> Iterator[FaultyDisk]:
    made = FaultyDisk(stage)
    yield made
    os.close(made.descriptor)


@pytest.mark.parametrize("on_failure", DriverFailure)
async def test_a_poisoned_request_ends_every_driver_until_they_are_given_up(
    stage: Stage, disk: FaultyDisk, on_failure: DriverFailure
) -> None:
    device = await disk.start(on_failure, deaths_max=3, poison=POISON)
    assert await stage.read() == stage.image.read_bytes()[:4096]
    poisoned = asyncio.create_task(stage.read(POISON))
    told = await stage.wait_told(KINDS.FAILED)
    assert f"exited with {CRASH_STATUS}" in told.message
    assert device.describe().state is DeviceState.FAILED
    assert device.describe().deaths >= 3
    if on_failure is DriverFailure.REPORT:
        with pytest.raises(OSError, match="status 1"):
            await poisoned
        assert not stage.paused
    else:
        assert stage.paused
        assert not poisoned.done()
        # a driver without the fault does what was left
        device.plan = device.crew.plan = replace(device.plan, driver="block")
        await device.replace(latest=False)
        start_byte = POISON * 512
        assert await poisoned == stage.image.read_bytes()[start_byte : start_byte + 4096]


async def test_a_driver_that_ends_now_and_then_costs_no_request(stage: Stage, disk: FaultyDisk) -> None:
    device = await disk.start(crash_at=12)
    for number in range(30):
        await stage.write(8 * number, bytes([number]) * 4096)
    for number in range(30):
        assert await stage.read(8 * number) == bytes([number]) * 4096
    assert device.describe().deaths >= 4
    assert device.describe().state is not DeviceState.FAILED


async def test_a_torn_write_is_whole_after_the_next_driver(stage: Stage, disk: FaultyDisk) -> None:
    device = await disk.start(crash_at=3, torn=True)
    for number in range(1, 5):
        await stage.write(80, bytes([number]) * 8192)
        assert await stage.read(80) == bytes([number]) * 4096
        assert stage.image.read_bytes()[40960 : 40960 + 8192] == bytes([number]) * 8192
    assert device.describe().deaths >= 2


async def test_a_hung_driver_is_succeeded_again_and_again(stage: Stage, disk: FaultyDisk) -> None:
    device = await disk.start(hang_at=3, hang_s=1.0)
    for number in range(4):
        await stage.wait_spare()
        await stage.write(8, bytes([number]) * 4096)
    assert "queue 0 made no progress" in (await stage.wait_told(KINDS.HUNG)).message
    assert device.describe().deaths >= 1


async def test_a_driver_that_hangs_before_it_has_a_spare_is_ended(stage: Stage, disk: FaultyDisk) -> None:
    await disk.start(hang_at=1, hang_s=1.0)
    waiting = asyncio.create_task(stage.read())
    assert (
        "made no progress" in (told := await stage.wait_told(KINDS.HUNG)).message
        or "no order" in told.message
    )
    os.pwrite(disk.descriptor, b"{}".ljust(64), 0)
    assert await waiting == stage.image.read_bytes()[:4096]


async def test_latency_and_errors_reach_the_guest_alone(stage: Stage, disk: FaultyDisk) -> None:
    device = await disk.start(latency_ms=100, error_sectors=[16, 24])
    before = time.monotonic()
    assert await stage.read() == stage.image.read_bytes()[:4096]
    assert time.monotonic() - before >= 0.1
    for sector in (16, 24):
        with pytest.raises(OSError, match="status 1"):
            await stage.read(sector)
        with pytest.raises(OSError, match="status 1"):
            await stage.write(sector, bytes(4096))
    assert await stage.read(8) == stage.image.read_bytes()[4096:8192]
    assert device.describe().deaths == 0


async def test_errors_at_a_rate(stage: Stage, disk: FaultyDisk) -> None:
    await disk.start(error_rate=0.5)
    failed = 0
    for _ in range(60):
        try:
            await stage.read()
        except OSError:
            failed += 1
    assert 10 < failed < 50
