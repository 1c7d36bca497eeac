"""Memory that comes to a guest, and goes, while its requests are in flight: as at QEMU's memory hot-plug."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import LateDevice, RunningBackend
from tests.unit.channel.test_backend import EchoRequest

from duovisor.channel import features as bits
from duovisor.channel.frontend import FrontEnd
from duovisor.channel.messages import Request, build_memory_region

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.messages import RegionDescription

pytestmark = pytest.mark.usefixtures("no_leak")

MEMORY = 4 << 20
ALL_AT_ONCE = bits.CHANNEL_PROTOCOL_FEATURES & ~bits.PROTOCOL_CONFIGURE_MEM_SLOTS


class Growing:
    """A guest that begins with the first half of its memory, under a device that answers when it is told."""

    def __init__(self, protocol_features: int) -> None:
        self.front = FrontEnd(memory_bytes=MEMORY, regions=2, protocol_features=protocol_features)
        self.whole = self.front.regions
        self.front.regions = self.whole[:1]
        self.device = LateDevice()
        self.backend = RunningBackend(self.device)
        self.front.connect(self.backend.peer)

    def share(self, regions: list[RegionDescription]) -> None:
        """Tell the back end what memory there is now, as its way of being told is."""
        front, before = self.front, self.front.regions
        front.regions = regions
        if not front.protocol_features & bits.PROTOCOL_CONFIGURE_MEM_SLOTS:
            front.link.set_memory(regions, (front.memory_descriptor,) * len(regions))
            return
        for region in before:
            if region not in regions:
                front.link.request(Request.REM_MEM_REG, build_memory_region(region))
        for region in regions:
            if region not in before:
                front.link.request(
                    Request.ADD_MEM_REG, build_memory_region(region), (front.memory_descriptor,)
                )

    def submit(self, text: bytes) -> EchoRequest:
        """A request that the device has got, and keeps."""
        request = EchoRequest(self.front, text)
        request.submit()
        assert self.device.arrived.acquire(timeout=10)
        return request

    def answer(self, *requests: EchoRequest) -> list[bytes]:
        """Have all answered; what the guest gets."""
        self.device.answer()
        done: list[int] = []
        while len(done) < len(requests):
            done += [head for head, _ in self.front.queues[0].wait(10)]
        assert sorted(done) == sorted(request.head for request in requests)
        for head in done:
            self.front.queues[0].release(head)
        return [bytes(request.answer) for request in requests]

    def close(self) -> None:
        self.front.close()
        assert self.backend.close() is None


@pytest.fixture(params=[bits.CHANNEL_PROTOCOL_FEATURES, ALL_AT_ONCE], ids=["one-by-one", "table"])
def guest(request: pytest.FixtureRequest) -> Iterator[Growing]:
    made = Growing(request.param)
    yield made
    made.close()


def test_memory_comes_while_requests_are_in_flight(guest: Growing) -> None:
    before = guest.submit(b"before")
    guest.share(guest.whole)
    guest.front.allocate(MEMORY // 2, 4096)  # what follows lies in the memory that came
    after = guest.submit(b"after")
    assert after.answer_page > before.answer_page + MEMORY // 2 // 4096 - 1
    assert guest.answer(before, after) == [b"erofeb", b"retfa"]
    assert guest.answer(guest.submit(b"again")) == [b"niaga"]


def test_memory_goes_and_what_lies_in_it_is_no_buffer_any_more(guest: Growing) -> None:
    guest.share(guest.whole)
    guest.front.allocate(MEMORY // 2, 4096)
    inside = guest.submit(b"inside")
    guest.share(guest.whole[:1])
    assert guest.answer(inside) == [b"edisni"]  # it was taken on before
    late = EchoRequest(guest.front, b"too late")
    late.submit()
    guest.backend.wait_report()
    (report,) = guest.backend.reports
    assert "not in the guest's memory" in report


def test_a_successor_has_the_memory_that_came(guest: Growing) -> None:
    guest.share(guest.whole)
    guest.front.allocate(MEMORY // 2, 4096)
    left = guest.submit(b"left behind")
    guest.front.disconnect()
    assert guest.backend.close() is None
    guest.device = LateDevice()
    guest.backend = RunningBackend(guest.device)
    guest.front.connect(guest.backend.peer)
    assert guest.device.arrived.acquire(timeout=10)  # from the in-flight log
    assert guest.answer(left) == [b"dniheb tfel"]
