"""What a console shows again after a restart of the service: only what was not seen."""

from __future__ import annotations

import os
import select
import signal

import pytest

from duovisor.cli.console_session import catch_signals, skip


@pytest.mark.parametrize(
    ("scrollback", "seen", "fresh"),
    [
        (b"one two three", b"one two", b" three"),
        (b"one two", b"one two", b""),
        (b"three four", b"one two", b"three four"),
        (b"ab ab ab", b"ab", b""),
        (b"a  b" + bytes(range(256)) * 3 + b"!", b"a b" + bytes(range(256)) * 3, b"!"),  # logged twice
        (b"one two three", b"another" + b" two", b"one two three"),  # not enough to be sure
    ],
)
def test_skip(scrollback: bytes, seen: bytes, fresh: bytes) -> None:
    assert skip(scrollback, seen) == fresh


def test_signals_become_readable() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as wake:
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([wake], [], [], 10)[0]
        assert os.read(wake, 64) == bytes([signal.SIGTERM])
    assert signal.getsignal(signal.SIGTERM) is before
