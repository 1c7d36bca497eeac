"""The network card: headers, frames over several buffers, the filter, and guests that send nonsense."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.drivers.net_card import MAC, NO_OFFLOAD, PEER, PLAIN, Card, Wire, build_frame, make_card

from duovisor.controlling.drivers import net_layout as layout
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.net import parse_net_options
from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.net_stand_ins import DroppingNet, ParkedNet

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def open_card(*, mac: bytes | None = MAC, **how: int) -> Iterator[tuple[Card, Wire]]:
    card, wire = make_card(mac=mac, **how)
    try:
        yield card, wire
    finally:
        wire.end.close()
        card.close()


def test_frames_pass_both_ways_with_their_headers() -> None:
    header = bytes([1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0])  # checksum to be done, TCP over IPv4
    with open_card() as (card, wire):
        card.send(build_frame(b"hello"), header=header)
        assert wire.end.recv(1 << 17) == header + build_frame(b"hello")
        wire.end.send(header + build_frame(b"back", source=PEER, target=MAC))
        got, frame, count = card.receive()
        assert (got[:10], frame, count) == (header[:10], build_frame(b"back", source=PEER, target=MAC), 1)
        assert card.count("sent_frames") == card.count("received_frames") == 1
        assert (card.count("sent_bytes"), card.count("received_bytes")) == (19, 18)


@pytest.mark.parametrize("buffer_bytes", [12, 64, 1536, 4096])
def test_a_frame_extends_over_as_many_buffers_as_it_needs(buffer_bytes: int) -> None:
    rng = random.Random(buffer_bytes)
    with open_card(buffers=200, buffer_bytes=buffer_bytes) as (card, wire):
        largest = min(65536, 200 * buffer_bytes - 12)
        for size in (14, 1514, 60, largest, largest, 14, buffer_bytes * 2 - 12, buffer_bytes * 2 - 11):
            size = min(size, largest)
            sent = rng.randbytes(size)
            wire.end.send(NO_OFFLOAD + sent)
            _, frame, count = card.receive()
            assert frame == sent
            assert count == -(-(size + 12) // buffer_bytes)


def test_a_frame_waits_for_buffers_and_none_is_lost() -> None:
    with open_card(buffers=2) as (card, wire):
        long = random.Random(1).randbytes(9000)
        wire.end.send(NO_OFFLOAD + long)
        wire.end.send(NO_OFFLOAD + b"x" * 60)
        card.post(1)
        card.post(10)
        assert card.receive()[1:] == (long, 6)
        assert card.receive()[1:] == (b"x" * 60, 1)
        assert card.count("received_dropped") == 0


def test_a_frame_for_which_the_whole_ring_is_too_small_is_dropped() -> None:
    with open_card(buffers=256, buffer_bytes=64) as (card, wire):
        wire.end.send(NO_OFFLOAD + bytes(60000))
        wire.end.send(NO_OFFLOAD + b"y" * 60)
        assert card.receive()[1] == b"y" * 60
        assert card.count("received_dropped") == 1


def test_without_mergeable_buffers_a_frame_has_one_or_is_dropped() -> None:
    with open_card(buffers=8, features=PLAIN) as (card, wire):
        wire.end.send(NO_OFFLOAD + bytes(9000))
        wire.end.send(NO_OFFLOAD + b"z" * 1500)
        _, frame, count = card.receive()
        assert (frame, count) == (b"z" * 1500, 1)
        assert card.count("received_dropped") == 1


def test_bursts_keep_their_order() -> None:
    rng = random.Random(3)
    with open_card(buffers=250) as (card, wire):
        for _ in range(20):
            burst = [rng.randbytes(rng.choice((60, 1500, 9000))) for _ in range(8)]
            for frame in burst:
                wire.end.send(NO_OFFLOAD + frame)
            assert [card.receive()[1] for _ in burst] == burst


def test_full_buffers_are_no_reason_to_kick() -> None:
    with open_card(buffers=250) as (card, wire):
        for _ in range(2000):
            wire.end.send(NO_OFFLOAD + bytes(60))
            card.receive()
        assert card.front.queues[layout.RECEIVE].kicks < 50


def test_what_another_sends_in_the_guests_name_is_dropped() -> None:
    with open_card() as (card, wire):
        for cuts in ((), (12,), (20,), (3, 12, 19, 25)):
            card.send(build_frame(b"forged", source=PEER), cut_at=cuts)
            card.send(build_frame(b"true"), cut_at=cuts)
            assert wire.end.recv(1 << 17) == NO_OFFLOAD + build_frame(b"true")
        assert card.count("spoofed") == 4


def test_the_filter_can_be_off() -> None:
    with open_card(mac=None) as (card, wire):
        card.send(build_frame(b"any", source=PEER))
        assert wire.end.recv(1 << 17).endswith(b"any")


@pytest.mark.parametrize("size", [1, 11, 12, 18, 25])
def test_frames_without_a_beginning_are_dropped(size: int) -> None:
    with open_card() as (card, _):
        card.submit([bytes(size)])
        card.wait_sent()
        assert card.count("sent_dropped") == 1


def test_what_the_wire_refuses_is_dropped() -> None:
    with open_card() as (card, wire):
        card.submit([NO_OFFLOAD + build_frame(b""), *[bytes(1 << 20)] * 4])
        card.wait_sent()
        assert card.count("sent_dropped") == 1
        card.send(build_frame(b"next"))
        assert wire.end.recv(1 << 17).endswith(b"next")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, 1))
def test_any_pieces_are_sent_as_one_or_dropped(sizes: list[int], owner: int) -> None:
    whole = NO_OFFLOAD + build_frame(bytes(4096), source=(MAC, PEER)[owner])
    with open_card() as (card, wire):
        pieces, position = [], 0
        for size in sizes:
            pieces.append(whole[position : position + size])
            position += size
        card.submit(pieces)
        card.wait_sent()
        if position < 26:
            assert card.count("sent_dropped") == 1
        elif owner:
            assert card.count("spoofed") == 1
        else:
            assert wire.end.recv(1 << 17) == whole[:position]


def test_buffers_that_are_none_end_the_queue_alone() -> None:
    with open_card() as (card, wire):
        wire.end.send(NO_OFFLOAD + bytes(60))
        card.receive()
        queue = card.front.queues[layout.RECEIVE]
        address, _ = card.front.allocate(64)
        queue.submit(queue.prepare([], [(address, 11)]))
        wire.end.send(NO_OFFLOAD + bytes(60))
        card.receive()  # after which the card looks for more buffers
        card.send(build_frame(b"still"))
        assert wire.end.recv(1 << 17).endswith(b"still")
        assert card.backend.reports
        assert "no room for a header" in card.backend.reports[0]


def test_a_stopped_queue_gives_its_empty_buffers_back() -> None:
    with open_card(buffers=20) as (card, wire):
        wire.end.send(NO_OFFLOAD + b"1" * 60)
        card.receive()
        assert card.front.stop()[layout.RECEIVE] == 1
        wire.end.send(NO_OFFLOAD + b"2" * 60)
        card.front.resume()
        assert card.receive()[1] == b"2" * 60
        for _ in range(40):
            wire.end.send(NO_OFFLOAD + b"3" * 60)
            assert card.receive()[1] == b"3" * 60


def test_the_tap_learns_what_the_guest_can() -> None:
    with open_card() as (card, wire):
        card.wait_count("sent_frames", 0)
        card.send(build_frame(b""))
        assert wire.settings == [(0xF, 12)]
    assert layout.tap_offloads(layout.GUEST_TSO4) == 0
    assert layout.tap_offloads(layout.GUEST_CSUM | layout.GUEST_ECN) == 1
    assert layout.header_bytes(0) == 10


def test_stand_ins_keep_or_drop() -> None:
    for stand_in, is_sent in ((ParkedNet, False), (DroppingNet, True)):
        wire = Wire()
        card = Card(stand_in(wire))
        card.submit([NO_OFFLOAD + build_frame(b"lost")])
        if is_sent:
            card.wait_sent()
        assert card.front.stop() == [0, int(is_sent)]
        wire.end.close()
        card.close()


def test_options() -> None:
    assert parse_net_options([]) is None
    assert parse_net_options(["--mac", "52:54:00:12:34:56"]) == MAC
    for words in (["--mac"], ["--mac", "x"], ["--mac", "52:54:00:12:34"], ["--other", "1"]):
        with pytest.raises(DriverError, match="--mac"):
            parse_net_options(words)


def test_a_spare_touches_nothing() -> None:
    wire = Wire()
    device = NetDevice(wire, mac=MAC)
    device.set_features(layout.OFFERED_FEATURES)
    assert wire.settings == []
    device.close()
    wire.end.close()
