"""The guest's serial console: read from the first byte on, and shown to whoever is attached.

The VMM itself keeps what passes here in the console's log, which is kept within its bound from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from duovisor.controlling.console_log import ConsoleLog, read_console_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCROLLBACK_BYTES = 256 << 10
READ_BYTES = 16 << 10
RECONNECT_S = 0.05


class Console:
    """The serial console of one VM; ``attach`` may be called by several viewers.

    It has one connection, and a second one while the VM moves to another VMM.
    """

    def __init__(self, log: ConsoleLog, printed: bytes) -> None:
        self.scrollback = bytearray(printed)
        self._log = log
        self._viewers: list[Callable[[bytes], None]] = []
        self._connection: _Connection
        self._next: _Connection | None = None

    @classmethod
    async def connect(cls, path: Path, log: Path, *, resume: bool = False) -> Console:
        """Connect to the console's socket and bound ``log``, to which the VMM appends.

        ``resume``: the scroll-back begins with the log's end, with what nobody was there to read.
        """
        printed = read_console_log(log, SCROLLBACK_BYTES) if resume else b""
        console = cls(ConsoleLog(log), printed)
        console._connection = await _Connection.open(path, console._show)
        return console

    @classmethod
    async def of_ended(cls, path: Path, log: Path) -> Console:
        """The console of a guest that ended before anybody could listen: what it printed is in ``log``."""
        console = cls(ConsoleLog(log), read_console_log(log, SCROLLBACK_BYTES))
        ours, theirs = socket.socketpair()
        theirs.close()
        console._connection = _Connection(path, *await asyncio.open_unix_connection(sock=ours), console._show)
        return console

    async def listen(self, path: Path) -> None:
        """Listen to the VMM to which the VM is about to move as well; ``move`` or ``stay`` follows."""
        self._next = await _Connection.open(path, self._show)

    async def move(self) -> None:
        """The VM has moved: what is typed goes there, and the old VMM has nothing to say any more."""
        if self._next is not None:
            old, self._connection, self._next = self._connection, self._next, None
            await old.close()

    async def stay(self) -> None:
        """The VM has not moved."""
        if self._next is not None:
            await self._next.close()
            self._next = None

    def _show(self, data: bytes) -> None:
        self._log.count(len(data))
        self.scrollback += data
        del self.scrollback[:-SCROLLBACK_BYTES]
        for show in tuple(self._viewers):
            show(data)

    def attach(self, show: Callable[[bytes], None]) -> Callable[[], None]:
        """Call ``show`` with the scroll-back and all that follows; returns the function that detaches."""
        if self.scrollback:
            show(bytes(self.scrollback))
        self._viewers.append(show)
        return lambda: self._viewers.remove(show)

    def write(self, data: bytes) -> None:
        """Type into the console."""
        self._connection.write(data)

    async def close(self) -> None:
        """Close the connection; what the guest prints from now on is in the log alone."""
        await self.stay()
        await self._connection.close()


class _Connection:
    """A connection to a VM's end of the console; all that comes is given to ``show``.

    That end is the VMM's, or a driver's: when that dies its successor listens at the same place.
    """

    def __init__(
        self,
        path: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        show: Callable[[bytes], None],
    ) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._show = show
        self._pump = asyncio.create_task(self._run())

    @classmethod
    async def open(cls, path: Path, show: Callable[[bytes], None]) -> _Connection:
        reader, writer = await asyncio.open_unix_connection(path)
        return cls(path, reader, writer, show)

    async def _run(self) -> None:
        while True:
            # read without pause: a full socket would hold up the guest's own writes
            with contextlib.suppress(ConnectionError):
                while data := await self._reader.read(READ_BYTES):
                    self._show(data)
            self._writer.close()
            await asyncio.sleep(RECONNECT_S)  # not at once, for it may be lost again at once
            try:
                self._reader, self._writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                return  # nobody listens any more: the VM has ended

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def close(self) -> None:
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._pump
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
