"""This terminal, as the far end of a VM's serial console; Ctrl-] is ours, as in telnet and virsh."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPE = b"\x1d"  # Ctrl-]


def split_at_escape(data: bytes) -> tuple[bytes, int]:
    """What was typed before the first Ctrl-], and how many times Ctrl-] was pressed."""
    return data.split(ESCAPE, 1)[0], data.count(ESCAPE)


class Terminal:
    """Standard input and output; ``stdin`` is None when nobody can type (any more)."""

    def __init__(self) -> None:
        self.stdin = find_typist()

    def read(self) -> tuple[bytes, int]:
        """What was typed, and how often Ctrl-] was pressed; the end of the input is no reason to leave."""
        if self.stdin is None:
            return b"", 0
        data = os.read(self.stdin, 4096)
        if not data:
            self.stdin = None
        return split_at_escape(data)

    def write(self, data: bytes) -> None:
        """Show what the guest printed; a reader of ours that has gone away misses it."""
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]


def find_typist() -> int | None:
    """The descriptor of standard input, if it can be waited for: a terminal, a pipe or a socket."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    with contextlib.suppress(OSError), contextlib.closing(select.epoll()) as poll:
        poll.register(sys.stdin)  # refused for a regular file and for /dev/null: there is no typist
        return sys.stdin.fileno()
    return None


@contextlib.contextmanager
def open_terminal() -> Iterator[Terminal]:
    """Standard input and output; a terminal is made raw for as long."""
    terminal = Terminal()
    if terminal.stdin is None or not os.isatty(terminal.stdin):
        yield terminal
        return
    stdin, saved = terminal.stdin, termios.tcgetattr(terminal.stdin)
    tty.setraw(stdin)
    try:
        yield terminal
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
