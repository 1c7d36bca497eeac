"""Partitions that wait for an order: what they are meanwhile, whose they become, and that none stays behind.

What one of them becomes is attacked in ``test_attacks``.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from typing import TYPE_CHECKING

import pytest
from tests.contract.driver_partition.attacked_owner import NAMESPACES, look
from tests.contract.driver_partition.conftest import ROOT
from tests.contract.driver_partition.waiting import find_waiting, wait_waiting

from duovisor.controlling.partitions.factory import WAITING_TITLE, PartitionFactory

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.driver_partition.served_disk import ServedDisk

SETGID_SETUID_SETPCAP = 0b111 << 6


async def test_what_it_is_meanwhile(factory: PartitionFactory, folder: Path) -> None:
    factory.keep(1)
    [pid] = await wait_waiting(factory, 1)
    seen = look(pid)
    assert seen["command_line"] == f"{WAITING_TITLE} {folder}/factory.log"
    status = seen["status"]
    assert [int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [
        0, SETGID_SETUID_SETPCAP, SETGID_SETUID_SETPCAP, 0,
    ]  # fmt: skip
    assert (status["NoNewPrivs"], status["NSpid"][1:]) == (["1"], ["1"])
    assert seen["root"] == []
    assert len(seen["mounts"]) == 1
    socket, *others = (seen["descriptors"][number] for number in sorted(seen["descriptors"]))
    assert socket.startswith("socket:")
    assert others == [os.devnull, os.devnull]
    own = {name for name in NAMESPACES if seen["namespaces"][name] != os.readlink(f"/proc/self/ns/{name}")}
    assert own == set(NAMESPACES) - ({"user"} if ROOT else set())


async def test_orders_take_those_that_wait_and_they_serve(disk: ServedDisk) -> None:
    disk.factory.keep(1)
    [pid] = await wait_waiting(disk.factory, 1)
    partition = await disk.serve()
    assert partition.process.pid == pid
    assert disk.client.read(8, 4096) == disk.image.read_bytes()[4096:8192]
    assert find_waiting(disk.factory.process.pid) == []  # nobody comes in its place unasked
    another = await disk.create()
    assert another.process.pid != pid
    await partition.control.request("end")
    assert await partition.process.wait() == 0
    assert partition.process.last_words() == ""


async def test_as_many_wait_as_are_wanted(factory: PartitionFactory) -> None:
    factory.keep(3)
    before = await wait_waiting(factory, 3)
    factory.keep(1)
    assert set(await wait_waiting(factory, 1)) < set(before)
    factory.keep(1 << 40)
    await wait_waiting(factory, 8)  # no owner's mistake fills the host
    factory.keep(0)
    await wait_waiting(factory, 0)


async def test_one_that_died_is_not_given_away(disk: ServedDisk) -> None:
    disk.factory.keep(2)
    pids = await wait_waiting(disk.factory, 2)
    for pid in pids:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.to_thread(select.select, [pidfd], [], [])
        os.close(pidfd)
    partition = await disk.serve()  # the factory may not have heard of it yet
    assert partition.process.pid not in pids
    assert disk.client.read(0, 512) == disk.image.read_bytes()[:512]


@pytest.mark.parametrize("end_with_owner", [True, False])
@pytest.mark.parametrize("killed", [True, False])
async def test_they_end_with_their_factory(folder: Path, end_with_owner: bool, killed: bool) -> None:
    factory = await PartitionFactory.start(log=folder / "factory.log", end_with_owner=end_with_owner)
    factory.keep(2)
    pidfds = [os.pidfd_open(pid) for pid in await wait_waiting(factory, 2)]
    if killed:
        await factory.process.kill()
    await factory.close()
    for pidfd in pidfds:
        ended, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], 60 if killed else 0)
        os.close(pidfd)
        assert ended, "one is still there"
