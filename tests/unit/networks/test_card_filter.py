"""A card's rules, tried with packets: another namespace is the guest, its wire the card's TAP."""

from __future__ import annotations

import socket
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.networks import BRIDGE, HOST, WIRE, Outside, enter_network, run_ip, why_no_namespace, wire_outside

from duovisor.controlling.networks.card_filter import install_filter, remove_filter
from duovisor.spec.vm import NicSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST, FORGED = "10.77.0.2", "10.77.0.3"
SOON_S, DENIED_S = 10.0, 0.3


@pytest.fixture
def guest() -> Iterator[Outside]:
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network(), wire_outside() as outside:
        run_ip("link", "set", WIRE, "master", BRIDGE)
        for address in (GUEST, FORGED):
            outside.do(partial(run_ip, "addr", "add", f"{address}/24", "dev", "eth0"))
        yield outside


def set_rules(guest: Outside, *firewall: str, address: str | None = None) -> None:
    mac = guest.do(lambda: run_ip("-br", "link", "show", "eth0").split()[2])
    card = NicSpec.model_validate({"bridge": BRIDGE, "firewall": list(firewall), "address": address})
    install_filter(WIRE, mac, card)


def open_udp(address: str, port: int = 0) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((address, port))
    return opened


def hears(receiver: socket.socket, sender: socket.socket, *, timeout_s: float) -> bool:
    """Whether a datagram gets from one to the other."""
    sender.sendto(b"x", receiver.getsockname())
    receiver.settimeout(timeout_s)
    try:
        receiver.recv(10)
    except TimeoutError:
        return False
    return True


def connects(caller: Outside | None, place: tuple[str, int]) -> bool:
    """Whether a TCP connection comes about, from the guest or (None) from the host."""

    def connect() -> bool:
        try:
            socket.create_connection(place, timeout=SOON_S if caller else DENIED_S).close()
        except TimeoutError:
            return False
        return True

    return caller.do(connect) if caller else connect()


def test_only_answers_come_in_where_nothing_is_allowed(guest: Outside) -> None:
    set_rules(guest)
    inside, stranger = guest.do(lambda: open_udp(GUEST)), open_udp(HOST)
    with closing(inside), closing(stranger), closing(open_udp(HOST)) as peer:
        assert not hears(inside, peer, timeout_s=DENIED_S)
        assert hears(peer, inside, timeout_s=SOON_S)
        assert hears(inside, peer, timeout_s=SOON_S)
        assert not hears(inside, stranger, timeout_s=DENIED_S)
    with socket.create_server((HOST, 0)) as listener:
        assert connects(guest, listener.getsockname())
    with guest.do(lambda: socket.create_server((GUEST, 0))) as listener:
        assert not connects(None, listener.getsockname())


def test_what_is_listed_comes_in_and_is_answered(guest: Outside) -> None:
    with guest.do(lambda: socket.create_server((GUEST, 0))) as opened:
        port = opened.getsockname()[1]
        inside = guest.do(lambda: open_udp(GUEST, 5353))
        set_rules(guest, f"in tcp {port} from 10.77.0.0/24", "in udp 5353", "out icmp")
        assert connects(None, (GUEST, port))
        with closing(inside), closing(open_udp(HOST)) as peer, closing(open_udp(HOST)) as other:
            assert hears(inside, peer, timeout_s=SOON_S)
            assert hears(peer, inside, timeout_s=SOON_S)  # an answer, though nothing else may go out
            assert not hears(other, inside, timeout_s=DENIED_S)
        set_rules(guest, f"in tcp {port} from 10.99.0.0/24")
        assert not connects(None, (GUEST, port))
    remove_filter(WIRE)  # whose interface is there: nothing happens
    with guest.do(lambda: socket.create_server((GUEST, 0))) as closed:
        assert not connects(None, closed.getsockname())


def test_no_other_address_gets_out(guest: Outside) -> None:
    set_rules(guest, "in any", address=GUEST)
    with closing(open_udp(HOST)) as peer:
        for address, passes in ((GUEST, True), (FORGED, False)):
            with closing(guest.do(partial(open_udp, address))) as inside:
                assert hears(peer, inside, timeout_s=SOON_S if passes else DENIED_S) is passes
    guest.do(lambda: run_ip("link", "set", "eth0", "address", "52:54:00:99:99:99"))
    with closing(open_udp(HOST)) as peer, closing(guest.do(lambda: open_udp(GUEST))) as inside:
        assert not hears(peer, inside, timeout_s=DENIED_S)
