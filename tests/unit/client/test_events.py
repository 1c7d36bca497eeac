"""Server-sent events: cut at any place, comments, gaps, and what is none."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.client.errors import ReplyError
from duovisor.client.events import EventParser, Message, parse_block

STREAM = (
    b': hello\n\nid: 1\ndata: {"a": "\xc3\xa9"}\n\n: still here\n\n'
    b'event: gap\ndata: {"oldest": 5}\n\nid: 2\ndata: [1,\ndata: 2]\n\n'
)
MESSAGES = [
    Message("message", "1", {"a": "é"}),
    Message("gap", "", {"oldest": 5}),
    Message("message", "2", [1, 2]),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_a_stream_may_come_in_any_pieces(cuts: list[int]) -> None:
    parser, found = EventParser(), list[Message]()
    places = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(places):
        found += parser.feed(STREAM[begin:end])
    assert found == MESSAGES


def test_a_comment_is_no_message() -> None:
    assert parse_block(": still here") is None
    assert parse_block("id: 7") is None


def test_what_no_service_says() -> None:
    with pytest.raises(ReplyError, match="not JSON"):
        parse_block("data: {")
    with pytest.raises(ReplyError, match="longer than any"):
        list(EventParser().feed(b"data: " + b"x" * (2 << 20)))
