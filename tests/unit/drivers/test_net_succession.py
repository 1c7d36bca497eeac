"""One network card after the other on the same wire: no buffer is used twice, none is lost."""

from __future__ import annotations

import os
import socket
import threading

from tests.unit.drivers.net_card import MAC, NO_OFFLOAD, Card, Wire

from duovisor.channel.backend import Ending
from duovisor.channel.standby import Outcome, Standby
from duovisor.controlling.drivers.net_device import NetDevice


class Shared:
    """A card whose driver has a spare on the same wire."""

    def __init__(self) -> None:
        self.wire, other = Wire(), Wire()
        os.close(other.descriptor)
        other.end.close()
        other.descriptor = os.dup(self.wire.descriptor)
        self.card = Card(NetDevice(self.wire, mac=MAC), buffers=0)
        self.backend = self.card.backend.backend
        self.backend.watch(gate := os.eventfd(0), lambda: self._wait(gate))
        self.backend.watch(order := os.eventfd(0), lambda: self._hand_over(order))
        self.gate, self.order = gate, order
        self.device = NetDevice(other, mac=MAC)
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outcome: Outcome | None = None
        self.handed_over = False
        self.spare = threading.Thread(target=self._stand_by)

    def _wait(self, gate: int) -> None:
        os.eventfd_read(gate)
        self.entered.set()
        assert self.opened.wait(10)

    def _hand_over(self, order: int) -> None:
        os.eventfd_read(order)
        self.backend.add_successor("spare", self.theirs)
        self.handed_over = self.backend.hand_over("spare")

    def _stand_by(self) -> None:
        page = self.backend._page
        standby = Standby(self.device, page=page, succession=self.ours, on_hang=lambda *_: None)
        self.outcome = standby.run()
        if standby.backend is not None:
            assert standby.backend.run() is Ending.CLOSED

    def close(self) -> None:
        self.wire.end.close()
        self.card.front.close()
        self.spare.join(10)
        assert not self.spare.is_alive()
        assert self.card.backend.close() is None
        self.device.close()
        for descriptor in (self.gate, self.order):
            os.close(descriptor)


def test_a_frame_that_comes_with_the_hand_over_is_the_successors() -> None:
    shared = Shared()
    card = shared.card
    card.post(100)
    shared.wire.end.send(NO_OFFLOAD + b"0" * 60)
    assert card.receive()[1] == b"0" * 60
    shared.spare.start()
    os.eventfd_write(shared.gate, 1)
    assert shared.entered.wait(10)
    os.eventfd_write(shared.order, 1)  # the next turn of the loop finds both
    shared.wire.end.send(NO_OFFLOAD + b"1" * 60)
    shared.opened.set()
    for number in range(1, 200):
        if number > 1:
            shared.wire.end.send(NO_OFFLOAD + bytes([number]) * 60)
        frame = card.receive()[1]
        assert frame == (b"1" if number == 1 else bytes([number])) * 60
    assert shared.handed_over
    assert shared.outcome is Outcome.TOOK_OVER
    assert shared.device.counters.received_frames == 199
    assert card.count("received_frames") == 1
    shared.close()
