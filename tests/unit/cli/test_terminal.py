"""The terminal and the serial console: Ctrl-], raw mode, and what cannot be typed on."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.cli.terminal import attach_terminal, split_at_escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class FakeConsole:
    """Keeps what was typed; prints ``greeting`` to whoever attaches."""

    def __init__(self, greeting: bytes = b"hello") -> None:
        self.greeting = greeting
        self.show: Callable[[bytes], None] = lambda data: None
        self.typed = bytearray()
        self.viewers = 0

    def attach(self, show: Callable[[bytes], None]) -> Callable[[], None]:
        self.viewers += 1
        self.show = show
        show(self.greeting)
        return self._detach

    def _detach(self) -> None:
        self.viewers -= 1

    def write(self, data: bytes) -> None:
        self.typed += data


@pytest.mark.parametrize(
    ("data", "typed", "escapes"),
    [(b"ls\n", b"ls\n", 0), (b"\x1d", b"", 1), (b"ab\x1dcd", b"ab", 1), (b"\x1d\x1d", b"", 2), (b"", b"", 0)],
)
def test_split_at_escape(data: bytes, typed: bytes, escapes: int) -> None:
    assert split_at_escape(data) == (typed, escapes)


@contextmanager
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pseudo-terminal as standard input and output; the value is the user's end.

    No fixture: pytest gives each phase of a test its own standard output.
    """
    user, program = pty.openpty()
    with os.fdopen(program, "rb+", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(sys, "stdout", file)
        yield user
    os.close(user)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the other side is a descriptor, not a task
            await asyncio.sleep(0.001)


async def test_a_terminal_is_raw_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_terminal(monkeypatch) as terminal:
        await check_raw(terminal)


async def check_raw(terminal: int) -> None:
    before: list[Any] = termios.tcgetattr(terminal)
    console, escapes = FakeConsole(b""), []  # what is printed before the terminal is raw must be read before
    with attach_terminal(console, lambda: escapes.append(1)):  # type: ignore[arg-type]  # a fake
        console.show(b"hello")
        assert os.read(terminal, 5) == b"hello"
        assert not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(terminal, b"ls\x03\n")  # Ctrl-C is the guest's
        await wait_until(lambda: bytes(console.typed) == b"ls\x03\n")
        os.write(terminal, b"\x1d")
        await wait_until(lambda: escapes == [1])
        os.write(terminal, b"\x1d")
        await wait_until(lambda: escapes == [1, 1])
    assert termios.tcgetattr(terminal) == before
    assert console.viewers == 0


async def test_a_terminal_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    console = FakeConsole(b"")
    with open_terminal(monkeypatch) as terminal:
        before = termios.tcgetattr(terminal)
        with pytest.raises(KeyError), attach_terminal(console, lambda: None):  # type: ignore[arg-type]  # a fake
            raise KeyError
        assert termios.tcgetattr(terminal) == before


async def test_input_from_a_pipe_ends_without_ending_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, write = os.pipe()
    console = FakeConsole()
    with os.fdopen(read, "rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        with attach_terminal(console, pytest.fail):  # type: ignore[arg-type]  # a fake
            os.write(write, b"typed")
            os.close(write)
            await wait_until(lambda: bytes(console.typed) == b"typed")
            await asyncio.sleep(0.01)
    assert (tmp_path / "out").read_bytes() == b"hello"


@pytest.mark.parametrize("source", ["/dev/null", "file"])
async def test_input_that_cannot_be_waited_for(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"text")
    with (tmp_path / source).open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        with attach_terminal(FakeConsole(), pytest.fail):  # type: ignore[arg-type]  # a fake
            await asyncio.sleep(0)
    assert (tmp_path / "out").read_bytes() == b"hello"
