"""The guest's serial console: read from the first byte on, and shown to whoever is attached.

The VMM itself keeps what passes here in the console's log, which is kept within its bound from here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from duovisor.controlling.console_log import ConsoleLog, read_console_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCROLLBACK_BYTES = 256 << 10
READ_BYTES = 16 << 10


class Console:
    """A connection to the serial console of one VM; ``attach`` may be called by several viewers."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: ConsoleLog, printed: bytes
    ) -> None:
        self.scrollback = bytearray(printed)
        self._reader = reader
        self._writer = writer
        self._log = log
        self._viewers: list[Callable[[bytes], None]] = []
        self._pump = asyncio.create_task(self._run())

    @classmethod
    async def connect(cls, path: Path, log: Path, *, resume: bool = False) -> Console:
        """Connect to the console's socket and bound ``log``, to which the VMM appends.

        ``resume``: the scroll-back begins with the log's end, with what nobody was there to read.
        """
        printed = read_console_log(log, SCROLLBACK_BYTES) if resume else b""
        reader, writer = await asyncio.open_unix_connection(path)
        return cls(reader, writer, ConsoleLog(log), printed)

    async def _run(self) -> None:
        # read without pause: a full socket would hold up the guest's own writes
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(READ_BYTES):
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
        self._writer.write(data)

    async def close(self) -> None:
        """Close the connection; what the guest prints from now on is in the log alone."""
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._pump
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
