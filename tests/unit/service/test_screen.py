"""Tickets, and what a viewer may say to a screen."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.service.errors import NotAuthenticatedError
from duovisor.controlling.service.identity import Identity, Role
from duovisor.controlling.service.rfb import NotAMessageError, WatchingFilter
from duovisor.controlling.service.tickets import LIFE_S, MOST, Tickets

ADA = Identity("user:ada", Role.OPERATOR)
PRELUDE = b"RFB 003.008\n\x01\x01"
PIXEL_FORMAT = bytes(20)
ENCODINGS = struct.pack(">BxHii", 2, 2, 0, -223)
REQUEST = b"\x03\x01" + bytes(8)
KEY, POINTER = b"\x04" + bytes(7), b"\x05" + bytes(5)
TEXT = struct.pack(">B3xI", 6, 3) + b"abc"
EXTENDED_TEXT = struct.pack(">B3xi", 6, -5) + b"abcde"
SIZE = struct.pack(">BxHHBx", 251, 800, 600, 1) + bytes(16)
QEMU_KEY, QEMU_AUDIO = b"\xff\x00" + bytes(10), b"\xff\x01\x00\x02" + bytes(6)
PASSED = (PIXEL_FORMAT, ENCODINGS, REQUEST)
LEFT_OUT = (KEY, POINTER, TEXT, EXTENDED_TEXT, SIZE, QEMU_KEY, QEMU_AUDIO)


class Clock:
    """A time that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_redeemed_once_and_in_time() -> None:
    clock = Clock()
    tickets = Tickets(clock)
    secret = tickets.issue("web", "u1", ADA)
    assert tickets.redeem(secret, "web")[:3] == ("web", "u1", ADA)
    with pytest.raises(NotAuthenticatedError):
        tickets.redeem(secret, "web")
    late = tickets.issue("web", "u1", ADA)
    clock.now += LIFE_S
    with pytest.raises(NotAuthenticatedError):
        tickets.redeem(late, "web")


def test_a_ticket_shown_for_another_vm_is_used_up() -> None:
    tickets = Tickets()
    secret = tickets.issue("web", "u1", ADA)
    for name in ("db", "web"):
        with pytest.raises(NotAuthenticatedError):
            tickets.redeem(secret, name)


def test_tickets_that_nobody_uses_take_no_memory() -> None:
    tickets = Tickets()
    first = tickets.issue("web", "u1", ADA)
    for _ in range(MOST):
        last = tickets.issue("web", "u1", ADA)
    with pytest.raises(NotAuthenticatedError):
        tickets.redeem(first, "web")
    assert tickets.redeem(last, "web").name == "web"


@given(
    st.lists(st.sampled_from((*PASSED, *LEFT_OUT)), max_size=20),
    st.lists(st.integers(min_value=1, max_value=9), min_size=1),
)
def test_only_requests_pass_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    data, watching, passed, at = PRELUDE + b"".join(messages), WatchingFilter(), b"", 0
    while at < len(data):
        for cut in cuts:
            passed += watching.feed(data[at : at + cut])
            at += cut
    assert passed == PRELUDE + b"".join(message for message in messages if message in PASSED)


def test_an_old_client_chooses_no_security() -> None:
    assert WatchingFilter().feed(b"RFB 003.003\n\x01" + KEY + REQUEST) == b"RFB 003.003\n\x01" + REQUEST


@pytest.mark.parametrize("wrong", [b"\x63", b"\xff\x07\x00\x00", struct.pack(">B3xI", 6, 1 << 21)])
def test_what_the_protocol_does_not_know_ends_it(wrong: bytes) -> None:
    with pytest.raises(NotAMessageError):
        WatchingFilter().feed(PRELUDE + wrong)
