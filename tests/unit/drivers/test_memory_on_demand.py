"""What a driver hears of its pager, in whichever order it comes to look."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from duovisor.channel.errors import GuestMemoryError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.on_demand import DONE
from duovisor.controlling.drivers.memory_on_demand import MemoryOnDemand

if TYPE_CHECKING:
    from collections.abc import Iterator

VIEW = memoryview(bytearray(4096))


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def make(loop: EventLoop) -> tuple[MemoryOnDemand, socket.socket]:
    """One whose device is none, so that registering fails, and the pager's end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return MemoryOnDemand(os.open("/dev/null", os.O_RDWR), ours.detach(), loop), theirs


@pytest.mark.parametrize("turns", [0, 1])
def test_nothing_is_registered_when_all_is_there(loop: EventLoop, turns: int) -> None:
    memory, pager = make(loop)
    with pager:
        pager.send(DONE)
    for _ in range(turns):
        loop.turn(0)
    for _ in range(2):
        memory.register(VIEW, 0)
    assert memory.held == []
    loop.turn(0)


@pytest.mark.parametrize("turns", [0, 1])
def test_a_pager_that_ended_without_a_word_is_an_error_and_all_is_kept(loop: EventLoop, turns: int) -> None:
    memory, pager = make(loop)
    pager.close()
    for _ in range(turns):
        loop.turn(0)
    for _ in range(2):
        with pytest.raises(GuestMemoryError):
            memory.register(VIEW, 0)
    assert len(memory.held) == 1
    os.close(memory.held.pop())
    memory.pager.close()
