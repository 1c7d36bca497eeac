"""The manager gives a running VM another process of this VMM: what is carried over, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import find_gaps

from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.controlling.supervision.records import DeviceState
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from tests.contract.thin_vmm.lab import Lab

OWN_DRIVER = """
from duovisor.channel.device import VirtioDevice
class Dice(VirtioDevice):
    device_id = 4
    queues = 1
    features = 0
    def handle(self, queue, chains):
        for chain in chains:
            queue.push(chain, 0)
"""


async def test_an_entropy_source_goes_with_its_guest(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager, devices=[{"driver": "rng"}])
        await manager.start("vm")
        await lab.wait_ticks(manager, 50)
        result = await manager.update_vmm("vm")
        assert (result.vmm, result.new_pid != result.old_pid) == (VmmKind.THIN, True)
        machine = manager._host.active[0].machine
        assert sorted(machine.devices) == ["console-channel", "device0", "disk0"]
        assert {device.state for device in machine.devices.values()} == {DeviceState.RUNNING}
        assert find_gaps(await lab.wait_more(manager)) == 0
        assert (await manager.update_vmm("vm")).old_pid == result.new_pid  # and again
        assert find_gaps(await lab.wait_more(manager)) == 0
        await manager.stop("vm")


async def test_a_device_with_a_driver_of_ones_own_does_not(lab: Lab) -> None:
    driver = lab.root / "dice.py"
    driver.write_text(OWN_DRIVER)
    async with lab.managed() as manager:
        await lab.define(manager, devices=[{"driver": "rng"}, {"driver": str(driver)}])
        await manager.start("vm")
        with pytest.raises(MoveRefusedError, match="device1 cannot be carried over"):
            await manager.update_vmm("vm")
        assert (await manager.get("vm")).status.state is State.RUNNING
        assert find_gaps(await lab.wait_more(manager)) == 0
        await manager.stop("vm")
