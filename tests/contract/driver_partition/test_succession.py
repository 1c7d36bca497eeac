"""Two partitions and one disk: a spare takes over, after a death or by a hand-over."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.partitions.errors import PartitionRefusedError

if TYPE_CHECKING:
    from tests.contract.driver_partition.served_disk import ServedDisk

INHERITED = {"event": "serving", "connection": "inherited"}


async def test_a_spare_takes_over_after_a_kill(disk: ServedDisk) -> None:
    active = await disk.serve()
    for turn in range(5):
        spare = await disk.stand_by(active)
        disk.client.write(8 * turn, bytes([turn]) * 4096)
        assert await active.process.kill() == -signal.SIGKILL
        assert await spare.control.next_event() == INHERITED
        assert disk.client.read(8 * turn, 4096) == bytes([turn]) * 4096
        active = spare
    assert (await active.control.request("status"))["role"] == "active"


async def test_a_hand_over_ends_the_active_in_order(disk: ServedDisk) -> None:
    active = await disk.serve()
    spare = await disk.stand_by(active)
    disk.client.write(0, b"a" * 512)
    await active.control.request("hand_over", to="spare")
    assert (await active.process.wait(), active.process.last_words()) == (0, "")
    assert await spare.control.next_event() == INHERITED
    assert disk.client.read(0, 512) == b"a" * 512


async def test_a_hand_over_to_nobody_is_refused(disk: ServedDisk) -> None:
    active = await disk.serve()
    with pytest.raises(PartitionRefusedError, match="spare does not take over; this driver goes on"):
        await active.control.request("hand_over", to="spare")
    assert disk.client.read(0, 512) == disk.image.read_bytes()[:512]


async def test_a_spare_ends_with_the_vm(disk: ServedDisk) -> None:
    active = await disk.serve()
    spare = await disk.stand_by(active)
    disk.close()
    assert await active.process.wait() == 0
    assert (await spare.process.wait(), spare.process.last_words()) == (0, "")


async def test_a_spare_ends_when_it_is_told_to(disk: ServedDisk) -> None:
    active = await disk.serve()
    spare = await disk.stand_by(active)
    await spare.control.request("end")
    assert await spare.process.wait() == 0
    assert disk.client.read(0, 512) == disk.image.read_bytes()[:512]


async def test_a_spare_tells_of_a_hung_driver(disk: ServedDisk) -> None:
    active = await disk.serve()
    spare = await disk.stand_by(active, hang_s=0.3)
    active.process.send_signal(signal.SIGSTOP)
    slot = disk.client.make_slot(0, 512)
    disk.client.submit(slot, 0)
    disk.client.queue.kick()
    hung = await spare.control.next_event()
    assert (hung["event"], hung["queue"]) == ("hung", 0)
    assert (await spare.control.request("status"))["hung"]["queue"] == 0
    await active.process.kill()
    assert await spare.control.next_event() == INHERITED
    assert len(disk.client.queue.wait(60)) == 1
