"""Prefix bounds against the plain meaning of a prefix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.store.requests import prefix_bounds

KEYS = st.text(alphabet=[chr(code) for code in (0x21, 0x2F, 0x61, 0x62, 0x7D, 0x7E)], max_size=5).map(
    "/".__add__
)


@given(key=KEYS, prefix=KEYS)
def test_the_bounds_of_a_prefix_hold_what_begins_with_it(key: str, prefix: str) -> None:
    start, end = prefix_bounds(prefix)
    assert (start <= key < end) == key.startswith(prefix)


@given(key=KEYS, prefix=KEYS, after=KEYS)
def test_after_cuts_off_a_key_and_what_sorts_before_it(key: str, prefix: str, after: str) -> None:
    start, end = prefix_bounds(prefix, after)
    assert (start <= key < end) == (key.startswith(prefix) and key > after)
