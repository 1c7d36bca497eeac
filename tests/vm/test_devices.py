"""Devices beside disks and network cards, in real guests: an entropy source, and a driver of one's own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.contract.own_driver.documentation import DRIVER

from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

SOURCE = "cat /sys/class/misc/hw_random/rng_current"
READ = "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | od -An -v -tx1 | tr -d ' \\n'"


@pytest.mark.parametrize("design", list(Design), ids=str)
async def test_the_guests_kernel_reads_our_entropy(boot: Boot, design: Design) -> None:
    guest = await boot(design, devices=[{"driver": "rng"}])
    assert "virtio_rng.0" in await guest.output(SOURCE)
    first, second = await guest.output(READ), await guest.output(READ)
    assert len(first) == len(second) == 512
    assert first != second


async def test_entropy_and_a_driver_of_ones_own_survive_kills(boot: Boot, tmp_path: Path) -> None:
    driver = tmp_path / "dice.py"
    driver.write_text(DRIVER)  # as docs/write-a-driver.md prints it
    devices = [{"driver": str(driver), "options": {"sides": 3}}]
    guest = await boot(Design.MICROKERNELIZED, devices=devices)
    device = guest.machine.devices["device0"]
    for _ in range(3):
        rolls = bytes.fromhex(await guest.output(READ))
        assert set(rolls) == {1, 2, 3}
        while device.describe().spare_pid is None:
            await guest.output("sleep 0.1")
        pid = device.describe().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert len(await guest.output(READ)) == 512
    driver.write_text(DRIVER.replace("randint(1, self.sides)", "randint(7, 9)"))
    await device.replace(latest=True)
    await guest.output(READ)  # what the guest had asked for before
    assert set(bytes.fromhex(await guest.output(READ))) == {7, 8, 9}
