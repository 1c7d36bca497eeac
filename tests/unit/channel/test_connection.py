"""Messages over a real socket pair: in pieces, with descriptors, cut short, and too much of everything."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

import pytest

from duovisor.channel.connection import Connection, request_name
from duovisor.channel.errors import PeerClosedError, ProtocolError
from duovisor.channel.messages import FLAG_NEED_REPLY, Request, build_header, build_u64

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def send_with_descriptors(peer: socket.socket, data: bytes, count: int) -> None:
    opened = [os.eventfd(0) for _ in range(count)]
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))])
    for descriptor in opened:
        os.close(descriptor)


def test_message_arrives_byte_by_byte(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    whole = build_header(Request.SET_FEATURES, FLAG_NEED_REPLY, 8) + build_u64(7)
    for byte in whole[:-1]:
        peer.send(bytes([byte]))
        assert connection.receive() is None
    peer.send(whole[-1:])
    message = connection.receive()
    assert message is not None
    assert (message.request, message.payload, message.needs_reply) == (
        Request.SET_FEATURES,
        build_u64(7),
        True,
    )


def test_two_messages_in_one_segment_stay_two(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    peer.send(build_header(1, 0, 0) + build_header(2, 0, 8) + build_u64(1))
    first, second = connection.receive(), connection.receive()
    assert first is not None
    assert second is not None
    assert (first.request, second.request) == (1, 2)
    assert connection.receive() is None


def test_descriptors_come_with_their_message(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    send_with_descriptors(peer, build_header(Request.SET_VRING_KICK, 0, 8) + build_u64(0), 1)
    message = connection.receive()
    assert message is not None
    descriptor = message.take_descriptor()
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("count", [0, 2, 8])
def test_wrong_number_of_descriptors_is_refused_and_closed(
    pair: tuple[Connection, socket.socket], count: int
) -> None:
    connection, peer = pair
    send_with_descriptors(peer, build_header(Request.SET_VRING_KICK, 0, 8) + build_u64(0), count)
    message = connection.receive()
    assert message is not None
    with pytest.raises(ProtocolError, match=f"SET_VRING_KICK came with {count} descriptors, not 1"):
        message.take_descriptor()
    message.close()


@pytest.mark.parametrize("count", [9, 20, 250])
def test_too_many_descriptors_are_refused_and_closed(
    pair: tuple[Connection, socket.socket], count: int
) -> None:
    connection, peer = pair
    send_with_descriptors(peer, build_header(1, 0, 0), count)
    with pytest.raises(ProtocolError, match="more than 8 descriptors"):
        connection.receive()


def test_descriptors_in_every_piece_of_a_message_are_counted(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    send_with_descriptors(peer, build_header(1, 0, 8), 8)
    assert connection.receive() is None
    send_with_descriptors(peer, build_u64(0), 1)
    with pytest.raises(ProtocolError, match="more than 8 descriptors"):
        connection.receive()


@pytest.mark.parametrize("sent", [1, 11, 12, 19])
def test_peer_that_stops_in_the_middle_is_an_error(pair: tuple[Connection, socket.socket], sent: int) -> None:
    connection, peer = pair
    send_with_descriptors(peer, (build_header(1, 0, 8) + build_u64(0))[:sent], 3)
    assert connection.receive() is None
    peer.close()
    with pytest.raises(ProtocolError, match="in the middle of a message"):
        connection.receive()


def test_peer_that_closes_between_messages_has_ended(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    peer.close()
    with pytest.raises(PeerClosedError):
        connection.receive()


def test_waiting_has_an_end(pair: tuple[Connection, socket.socket]) -> None:
    with pytest.raises(ProtocolError, match=r"did not answer within 0\.01 s"):
        pair[0].wait(0.01)


def test_peer_that_never_reads_does_not_hold_us_up(pair: tuple[Connection, socket.socket]) -> None:
    connection, _ = pair

    def send_for_ever() -> None:
        while True:
            connection.send(1, bytes(4096))

    with pytest.raises(ProtocolError, match="does not read"):
        send_for_ever()


def test_sending_to_a_closed_peer(pair: tuple[Connection, socket.socket]) -> None:
    connection, peer = pair
    peer.close()
    with pytest.raises(PeerClosedError):
        connection.send(1)


def test_names_of_requests() -> None:
    assert request_name(11) == "GET_VRING_BASE"
    assert request_name(999) == "request 999"
