"""The host's end of the conversation with a probe guest."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.errors import GuestGoneError, GuestProtocolError, GuestTimeoutError
from duovisor.controlling.images.probe_protocol import (
    LINE_BYTES_MAX,
    REPORT_REQUEST,
    BootReport,
    CommandDone,
    build_request,
    parse_message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.images.probe_protocol import GuestMessage

_LOOK = "see the VM's serial console"


class ProbeResult(NamedTuple):
    """What a command in the guest came to; ``output`` is its stdout and stderr in the order of writing."""

    exit: int
    output: bytes


class ProbeClient:
    """Speaks with the guest over a stream, which the caller opens and closes; one command at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._number = secrets.randbelow(1 << 31)  # so that the answer to an earlier client is not ours
        self._first_line = True
        self.boot_report: BootReport | None = None

    async def wait_booted(self, timeout_s: float) -> BootReport:
        """Ask for the guest's report that it is up, and wait for it.

        Raises ``GuestTimeoutError``, ``GuestGoneError`` or ``GuestProtocolError``.
        """
        async with self._lock, _deadline(timeout_s, "the guest did not report that it is up"):
            await self._send(REPORT_REQUEST)
            while not isinstance(message := await self._read_message(), BootReport):
                pass  # the answer to an earlier client's command
            self.boot_report = message
            return message

    async def run(self, command: str, timeout_s: float) -> ProbeResult:
        """Run a shell command in the guest and wait for its end.

        After a ``GuestTimeoutError`` the command still runs there, and the next one waits for it. Raises
        ``GuestGoneError`` and ``GuestProtocolError`` too.
        """
        async with self._lock, _deadline(timeout_s, f"the guest did not finish {_shorten(command)!r}"):
            self._number += 1
            await self._send(build_request(self._number, command))
            while True:
                message = await self._read_message()
                if isinstance(message, CommandDone) and message.id == self._number:
                    return ProbeResult(message.exit, message.output)

    async def _send(self, line: bytes) -> None:
        try:
            self._writer.write(line)
            await self._writer.drain()
        except ConnectionError as error:
            raise GuestGoneError("the guest's line was closed", remedy=_LOOK) from error

    async def _read_message(self) -> GuestMessage | None:
        """The guest's next message; ``None`` for the first line's remains of an earlier connection."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        except ValueError as error:  # longer than the stream's limit
            raise GuestProtocolError(f"a line of the guest is longer than {LINE_BYTES_MAX} bytes") from error
        if not line.endswith(b"\n"):
            raise GuestGoneError("the guest's line was closed", remedy=_LOOK)
        first, self._first_line = self._first_line, False
        try:
            return parse_message(line)
        except GuestProtocolError:
            if first:
                return None
            raise


@contextlib.asynccontextmanager
async def connect_probe(path: Path) -> AsyncIterator[ProbeClient]:
    """A client on the Unix socket that the VMM made for the guest's port; closed when the block ends."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
    except OSError as error:
        raise GuestGoneError(f"cannot reach the guest at {path}: {error.strerror}") from error
    try:
        yield ProbeClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def _deadline(timeout_s: float, complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise GuestTimeoutError(f"{complaint} within {timeout_s:g} s") from None


def _shorten(command: str) -> str:
    return command if len(command) <= 60 else f"{command[:57]}..."
