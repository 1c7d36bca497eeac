"""Group commit: who shares a commit, and what each of them is told."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.engine import Changed
from duovisor.controlling.store.errors import StoreIoError, StoreRequestError
from duovisor.controlling.store.group_commit import GROUP_MAX, GroupCommit
from duovisor.controlling.store.memory import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.controlling.store.engine import Writer


class SlowDisk:
    """Commits when ``go`` is set; remembers the size of each group."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.groups: list[int] = []
        self.fails = False
        self._engine = MemoryEngine(10)

    def commit(self, actions: Sequence[Callable[[Writer], object]]) -> tuple[list[object], Changed]:
        assert self.go.wait(5)
        if self.fails:
            raise StoreIoError("the disk is gone")
        self.groups.append(len(actions))
        return [self._attempt(action) for action in actions], Changed(len(self.groups), ("/a",))

    def _attempt(self, action: Callable[[Writer], object]) -> object:
        try:
            return action(self._engine)
        except StoreRequestError as error:
            return error


def _answer(number: int) -> Callable[[Writer], int]:
    return lambda writer: number


def _refuse(writer: Writer) -> int:
    raise StoreRequestError("no")


async def test_what_arrives_while_the_disk_is_busy_shares_the_next_commit() -> None:
    disk, announced = SlowDisk(), list[Changed]()
    commits = GroupCommit(disk.commit, announced.append)
    first = asyncio.create_task(commits.submit(_answer(-1)))
    await asyncio.sleep(0)  # the task submits
    await asyncio.sleep(0)  # its group of one goes to the disk
    rest = [asyncio.create_task(commits.submit(_answer(number))) for number in range(GROUP_MAX + 5)]
    await asyncio.sleep(0)
    disk.go.set()
    assert await first == -1
    assert await asyncio.gather(*rest) == list(range(GROUP_MAX + 5))
    assert disk.groups == [1, GROUP_MAX, 5]
    assert [changed.revision for changed in announced] == [1, 2, 3]
    await commits.close()


async def test_each_is_told_its_own_error() -> None:
    disk = SlowDisk()
    disk.go.set()
    commits = GroupCommit(disk.commit, lambda changed: None)
    results = await asyncio.gather(
        commits.submit(_answer(1)),
        commits.submit(_refuse),
        commits.submit(_answer(2)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [int, StoreRequestError, int]
    await commits.close()


async def test_when_the_disk_fails_everybody_in_the_group_is_told_and_the_next_one_is_tried() -> None:
    disk, announced = SlowDisk(), list[Changed]()
    disk.go.set()
    disk.fails = True
    commits = GroupCommit(disk.commit, announced.append)
    results = await asyncio.gather(*(commits.submit(_answer(n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreIoError] * 3
    assert announced == []
    disk.fails = False
    assert await commits.submit(_answer(4)) == 4
    await commits.close()


async def test_who_stops_waiting_does_not_hold_up_the_others() -> None:
    disk = SlowDisk()
    commits = GroupCommit(disk.commit, lambda changed: None)
    impatient = asyncio.create_task(commits.submit(_answer(1)))
    patient = asyncio.create_task(commits.submit(_answer(2)))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    disk.go.set()
    assert await patient == 2
    await commits.close()


async def test_closing_waits_for_what_was_submitted() -> None:
    disk = SlowDisk()
    commits = GroupCommit(disk.commit, lambda changed: None)
    submitted = asyncio.create_task(commits.submit(_answer(1)))
    await asyncio.sleep(0)
    disk.go.set()
    await commits.close()
    assert disk.groups == [1]
    assert await submitted == 1
