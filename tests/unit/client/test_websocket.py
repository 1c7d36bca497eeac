"""Frames of RFC 6455: the examples of its section 5.7, every length, and what a service never sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.client.errors import ReplyError
from duovisor.client.websocket import Frame, Opcode, build_frame, parse_frame

MASK = bytes.fromhex("37fa213d")


def test_examples_of_the_rfc() -> None:
    assert build_frame(Opcode.TEXT, b"Hello", MASK) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert parse_frame(bytes.fromhex("810548656c6c6f")) == (Frame(Opcode.TEXT, True, b"Hello"), b"")
    assert parse_frame(bytes.fromhex("010348656c")) == (Frame(Opcode.TEXT, False, b"Hel"), b"")
    assert parse_frame(bytes.fromhex("890548656c6c6f")) == (Frame(Opcode.PING, True, b"Hello"), b"")


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536])
def test_each_form_of_the_length(length: int) -> None:
    payload = bytes(index % 251 for index in range(length))
    masked = build_frame(Opcode.BINARY, payload, MASK)
    head = len(masked) - length - 4
    assert masked[head : head + 4] == MASK
    assert bytes(byte ^ MASK[i % 4] for i, byte in enumerate(masked[head + 4 :])) == payload
    unmasked = masked[:1] + bytes([masked[1] & 0x7F]) + masked[2:head] + payload
    assert parse_frame(unmasked + b"rest") == (Frame(Opcode.BINARY, True, payload), b"rest")
    for end in {0, 1, head - 1, head, len(unmasked) - 1} - {len(unmasked)}:
        assert parse_frame(unmasked[:end]) is None or end >= len(unmasked)


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    try:
        parsed = parse_frame(data)
    except ReplyError:
        return
    if parsed is not None:
        frame, rest = parsed
        assert data.endswith(frame.payload + rest)


@pytest.mark.parametrize(
    "frame",
    [bytes.fromhex("818548656c6c6f"), bytes.fromhex("c100"), b"\x82\x7f" + (1 << 40).to_bytes(8, "big")],
    ids=["masked", "extension", "huge"],
)
def test_what_a_service_never_sends(frame: bytes) -> None:
    with pytest.raises(ReplyError):
        parse_frame(frame)
