"""Joins this terminal and a VM's serial console; Ctrl-] leaves, as in telnet and virsh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.controlling.console import Console

ESCAPE = b"\x1d"  # Ctrl-]


def split_at_escape(data: bytes) -> tuple[bytes, int]:
    """What was typed before the first Ctrl-], and how many times Ctrl-] was pressed."""
    return data.split(ESCAPE, 1)[0], data.count(ESCAPE)


@contextlib.contextmanager
def attach_terminal(console: Console, on_escape: Callable[[], None]) -> Iterator[None]:
    """Show the console on standard output and type standard input into it.

    A terminal is made raw for as long; ``on_escape`` is called for every Ctrl-]. Input that is no terminal
    is passed on as it is, and its end is no reason to leave.
    """
    detach = console.attach(_write_output)
    stdin = sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1
    try:
        with _raw_terminal(stdin), _reading(stdin, console, on_escape):
            yield
    finally:
        detach()


def _write_output(data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]


@contextlib.contextmanager
def _raw_terminal(stdin: int) -> Iterator[None]:
    if stdin < 0 or not os.isatty(stdin):
        yield
        return
    saved = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


@contextlib.contextmanager
def _reading(stdin: int, console: Console, on_escape: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def read() -> None:
        data = os.read(stdin, 4096)
        if not data:
            loop.remove_reader(stdin)
            return
        typed, escapes = split_at_escape(data)
        if typed:
            console.write(typed)
        for _ in range(escapes):
            on_escape()

    try:
        loop.add_reader(stdin, read)
    except (PermissionError, ValueError):  # a regular file or /dev/null cannot be polled: there is no typist
        yield
        return
    try:
        yield
    finally:
        loop.remove_reader(stdin)
