"""A card's throttle: frames wait in order on both sides, none is lost or sent twice, and it can be lifted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.drivers.net_card import MAC, NO_OFFLOAD, PEER, Card, Wire, build_frame

from duovisor.channel.event_loop import EventLoop
from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.net_throttle import NetThrottle

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1000
OUT = [build_frame(number.to_bytes(2, "big") + bytes(SIZE)) for number in range(40)]
IN = [build_frame(number.to_bytes(2, "big") + bytes(SIZE), source=PEER, target=MAC) for number in range(40)]


class Slow:
    """A card whose throttle has a clock of its own: it is woken when a test says so, in the driver's loop."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.wire = Wire()
        self.device = NetDevice(self.wire)
        self.loop = EventLoop()  # its alarms ring nowhere
        self.throttle = NetThrottle(self.loop, self.device.reap, lambda: self.now_s)
        self.device.throttle = self.throttle
        self.card = Card(self.device)

    def close(self) -> None:
        self.wire.end.close()
        self.card.close()
        self.loop.close()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; a frame of nobody's wakes the device."""
        self.now_s += seconds
        self.wire.end.send(NO_OFFLOAD + build_frame(b"wake", source=PEER, target=MAC))

    def read_sent(self, *, within_s: float = 0.2) -> list[bytes]:
        """The frames that came out, until none comes."""
        got: list[bytes] = []
        self.wire.end.settimeout(within_s)
        try:
            while True:
                got.append(self.wire.end.recv(1 << 17)[len(NO_OFFLOAD) :])
        except TimeoutError:
            return got


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.close()


def test_what_the_guest_sends_waits_in_its_order(slow: Slow) -> None:
    slow.throttle.set_rate(0, SIZE * 10)
    for frame in OUT:
        slow.card.submit([NO_OFFLOAD + frame])
    got = slow.read_sent()
    assert got == OUT[: len(got)]
    assert 1 <= len(got) <= 3  # a tenth of a second, and what is owed for
    slow.pass_time(1.0)  # of which a tenth counts
    more = slow.read_sent()
    assert got + more == OUT[: len(got + more)]
    assert 1 <= len(more) <= 3
    slow.throttle.set_rate(0, 0)
    slow.pass_time(0)
    assert got + more + slow.read_sent() == OUT
    slow.card.wait_sent(len(OUT))


def test_what_comes_too_fast_waits_in_the_tap(slow: Slow) -> None:
    slow.throttle.set_rate(SIZE * 10, 0)
    for frame in IN:
        slow.wire.end.send(NO_OFFLOAD + frame)
    got = [slow.card.receive()[1]]
    time.sleep(0.1)
    assert 1 <= int(str(slow.card.count("received_frames"))) <= 3
    slow.throttle.set_rate(0, 0)
    slow.pass_time(0)
    got += [slow.card.receive()[1] for _ in range(len(IN) - 1)]
    assert got == IN


def test_a_stopped_queue_gives_back_what_waits(slow: Slow) -> None:
    slow.throttle.set_rate(0, SIZE * 10)
    for frame in OUT:
        slow.card.submit([NO_OFFLOAD + frame])
    got = slow.read_sent()
    slow.card.front.stop()
    assert slow.throttle.forget() == []
    slow.throttle.set_rate(0, 0)
    slow.card.front.resume()
    assert got + slow.read_sent() == OUT  # each once


def test_the_alarm_wakes_the_device_by_itself() -> None:
    wire = Wire()
    device = NetDevice(wire)
    card = Card(device)
    loop = card.backend.backend._loop
    device.throttle = NetThrottle(loop, card.backend.backend.reap)
    device.throttle.set_rate(SIZE * 200, SIZE * 200)
    for frame in OUT:
        card.submit([NO_OFFLOAD + frame])
    for frame in IN:
        wire.end.send(NO_OFFLOAD + frame)
    assert [card.receive()[1] for _ in IN] == IN
    card.wait_sent(len(OUT))
    assert [wire.end.recv(1 << 17)[len(NO_OFFLOAD) :] for _ in OUT] == OUT
    wire.end.close()
    card.close()
