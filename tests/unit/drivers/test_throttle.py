"""A throttle lets requests through at a rate, in their order, and is not there when there is no limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.drivers.test_block_device import Disk, descriptor, disk, guest

from duovisor.channel.event_loop import EventLoop
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.throttle import BURST_S, Bucket, Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["descriptor", "disk", "guest"]  # fixtures

IN = layout.REQUEST_IN


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(disk: Disk, loop: EventLoop, clock: Clock) -> Throttle:
    return Throttle(disk.device, loop, clock)


def test_a_bucket_fills_as_time_goes_by() -> None:
    bucket = Bucket(10, 0.0)
    assert bucket.wait_s(0.0) == 0
    bucket.take(6)
    assert bucket.wait_s(0.0) == pytest.approx(0.5)
    assert bucket.wait_s(0.3) == pytest.approx(0.2)
    assert bucket.wait_s(0.6) == 0
    bucket.take(1)
    assert bucket.wait_s(1000.0) == 0  # a long rest is not saved up
    bucket.take(2)
    assert bucket.wait_s(1000.0) == pytest.approx(2 / 10 - BURST_S)
    assert Bucket(0, 0.0).wait_s(0.0) == 0


def test_without_a_limit_there_is_nothing_in_the_way(disk: Disk, throttle: Throttle) -> None:
    assert "handle" not in vars(disk.device)
    throttle.set_rate(10, 0)
    assert "handle" in vars(disk.device)
    throttle.set_rate(0, 0)
    assert not {"handle", "drain", "abandon"} & set(vars(disk.device))


def test_requests_wait_in_their_order(disk: Disk, throttle: Throttle, clock: Clock) -> None:
    throttle.set_rate(10, 0)
    heads = [disk.submit(IN, 0, 0x1000 * number, 512) for number in range(5)]
    done = [head for head, _ in disk.turn()]
    assert done == heads[:2]  # what was there, and one that is owed for
    for turn in range(40):
        clock.now_s += 0.01
        if turn == 5:
            assert done == heads[:2]  # the next comes after a tenth of a second
        throttle._release()
        disk.queue.publish()
        done += [head for head, _ in disk.guest.front.reap()]
    assert done == heads[: len(done)]
    assert len(done) == 5


def test_bytes_count_too(disk: Disk, throttle: Throttle, clock: Clock) -> None:
    throttle.set_rate(0, 4096)
    for number in range(3):
        disk.submit(IN, 0, 0x2000 * number, 4096, pieces=1 + number)
    assert len(disk.turn()) == 1  # and owes for nearly a second
    clock.now_s += 0.85
    throttle._release()
    disk.queue.publish()
    assert disk.guest.front.reap() == []
    clock.now_s += 0.1
    throttle._release()
    disk.queue.publish()
    assert len(disk.guest.front.reap()) == 1


def test_another_limit_counts_at_once(disk: Disk, throttle: Throttle) -> None:
    throttle.set_rate(1, 0)
    for number in range(4):
        disk.submit(IN, 0, 0x1000 * number, 512)
    assert len(disk.turn()) == 1
    throttle.set_rate(0, 0)
    assert len(disk.guest.front.reap()) == 3


def test_what_waits_stays_in_flight_when_the_queue_stops(disk: Disk, throttle: Throttle) -> None:
    throttle.set_rate(1, 0)
    for number in range(3):
        disk.submit(IN, 0, 0x1000 * number, 512)
    disk.turn()
    disk.device.drain()
    throttle.set_rate(0, 0)
    assert disk.guest.front.reap() == []  # whoever starts the queue again does them
    assert disk.queue.in_flight == 2


def test_it_comes_back_by_itself(disk: Disk, loop: EventLoop) -> None:
    throttle = Throttle(disk.device, loop)
    throttle.set_rate(50, 0)
    heads = [disk.submit(IN, 0, 0x1000 * number, 512) for number in range(8)]
    done = len(disk.turn())
    deadline = time.monotonic() + 20
    while done < len(heads) and time.monotonic() < deadline:
        loop.turn(1.0)
        done += len(disk.guest.front.reap())
    assert done == len(heads)
