"""The terminal and the serial console: Ctrl-], raw mode, and what cannot be typed on."""

from __future__ import annotations

import os
import pty
import sys
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.cli.terminal import open_terminal, split_at_escape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("data", "typed", "escapes"),
    [(b"ls\n", b"ls\n", 0), (b"\x1d", b"", 1), (b"ab\x1dcd", b"ab", 1), (b"\x1d\x1d", b"", 2), (b"", b"", 0)],
)
def test_split_at_escape(data: bytes, typed: bytes, escapes: int) -> None:
    assert split_at_escape(data) == (typed, escapes)


@contextmanager
def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pseudo-terminal as standard input and output; the value is the user's end.

    No fixture: pytest gives each phase of a test its own standard output.
    """
    user, program = pty.openpty()
    with os.fdopen(program, "rb+", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(sys, "stdout", file)
        yield user
    os.close(user)


def test_a_terminal_is_raw_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_terminal(monkeypatch) as user:
        before: list[Any] = termios.tcgetattr(user)
        with open_terminal() as terminal:
            assert not termios.tcgetattr(user)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            terminal.write(b"hello\r\n")
            assert os.read(user, 7) == b"hello\r\n"
            os.write(user, b"ls\x03\n")  # Ctrl-C is the guest's
            assert terminal.read() == (b"ls\x03\n", 0)
            os.write(user, b"\x1d")
            assert terminal.read() == (b"", 1)
        assert termios.tcgetattr(user) == before


def test_a_terminal_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_terminal(monkeypatch) as user:
        before = termios.tcgetattr(user)
        with pytest.raises(KeyError), open_terminal():
            raise KeyError
        assert termios.tcgetattr(user) == before


def test_input_from_a_pipe_ends_without_ending_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with open_terminal() as terminal:
            os.write(write, b"typed")
            assert terminal.read() == (b"typed", 0)
            os.close(write)
            assert terminal.read() == (b"", 0)
            assert terminal.stdin is None
            assert terminal.read() == (b"", 0)


@pytest.mark.parametrize("source", ["/dev/null", "file"])
def test_input_that_cannot_be_waited_for(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with (tmp_path / source).open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with open_terminal() as terminal:
            assert terminal.stdin is None


def test_no_input_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with open_terminal() as terminal:
        assert terminal.stdin is None


def test_a_reader_that_has_gone_away_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with open_terminal() as terminal:
            terminal.write(b"lost")
