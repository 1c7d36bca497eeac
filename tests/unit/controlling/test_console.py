"""The serial console: nothing is lost, whoever looks and however much is printed."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.console import SCROLLBACK_BYTES, Console
from duovisor.controlling.console_log import FILE_BYTES, older, read_console_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import BinaryIO

SAID_AT_ONCE = 4096


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Path(name)


class Guest:
    """The VMM's end of the console, which also keeps the log."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: BinaryIO) -> None:
        self.reader = reader
        self.writer = writer
        self._log = log

    async def say(self, data: bytes) -> None:
        for start in range(0, len(data), SAID_AT_ONCE):
            part = data[start : start + SAID_AT_ONCE]
            self._log.write(part)
            self.writer.write(part)
            await self.writer.drain()


@asynccontextmanager
async def connected(folder: Path, *, resume: bool = False) -> AsyncIterator[tuple[Console, Guest]]:
    arrived: asyncio.Future[Guest] = asyncio.get_running_loop().create_future()
    path = folder / "console.sock"
    with (folder / "console.log").open("ab", buffering=0) as log:
        server = await asyncio.start_unix_server(lambda r, w: arrived.set_result(Guest(r, w, log)), path)
        console = await Console.connect(path, folder / "console.log", resume=resume)
        guest = await arrived
        try:
            yield console, guest
        finally:
            await console.close()
            guest.writer.close()
            server.close()
            await server.wait_closed()
            path.unlink(missing_ok=True)  # Python 3.13 does so itself


class Viewer:
    """Collects what it is shown; ``wait_for`` waits until that many bytes have come."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._more = asyncio.Event()

    def show(self, data: bytes) -> None:
        self.seen += data
        self._more.set()

    async def wait_for(self, size: int) -> bytes:
        async with asyncio.timeout(10):
            while len(self.seen) < size:
                self._more.clear()
                await self._more.wait()
        return bytes(self.seen)


async def test_shows_what_the_guest_prints_and_passes_on_what_is_typed(folder: Path) -> None:
    async with connected(folder) as (console, guest):
        viewer = Viewer()
        console.attach(viewer.show)
        await guest.say(b"login: ")
        assert await viewer.wait_for(7) == b"login: "
        console.write(b"root\n")
        async with asyncio.timeout(10):
            assert await guest.reader.readexactly(5) == b"root\n"
        assert (folder / "console.log").read_bytes() == b"login: "


async def test_a_late_viewer_sees_what_came_before(folder: Path) -> None:
    async with connected(folder) as (console, guest):
        early, late = Viewer(), Viewer()
        detach_early = console.attach(early.show)
        await guest.say(b"first ")
        await early.wait_for(6)
        detach_late = console.attach(late.show)
        assert bytes(late.seen) == b"first "
        await guest.say(b"second ")
        assert await late.wait_for(13) == await early.wait_for(13) == b"first second "
        detach_early()
        await guest.say(b"third")
        assert await late.wait_for(18) == b"first second third"
        assert bytes(early.seen) == b"first second "
        detach_late()


async def test_much_output_nobody_looks_at(folder: Path) -> None:
    """The guest is never held up; the end is kept, in memory and in the log."""
    text = b"".join(b"%08d\n" % number for number in range(200_000))
    async with connected(folder) as (console, guest):
        done = Viewer()
        console.attach(done.show)
        async with asyncio.timeout(20):
            await guest.say(text)
        await done.wait_for(len(text))
        assert bytes(console.scrollback) == text[-SCROLLBACK_BYTES:]
        log = folder / "console.log"
        assert read_console_log(log, FILE_BYTES) == text[-FILE_BYTES:]
        assert log.stat().st_size < FILE_BYTES + (1 << 19)  # a socket's buffers hold what is not counted yet
        late = Viewer()
        console.attach(late.show)
        assert bytes(late.seen) == text[-SCROLLBACK_BYTES:]


async def test_the_guest_s_end_is_no_error(folder: Path) -> None:
    async with connected(folder) as (console, guest):
        viewer = Viewer()
        console.attach(viewer.show)
        await guest.say(b"bye")
        guest.writer.close()
        assert await viewer.wait_for(3) == b"bye"
        console.write(b"anybody?")


async def test_a_successor_shows_what_nobody_was_there_to_read(folder: Path) -> None:
    (folder / "console.log").write_bytes(b"before ")
    for resume, text in ((False, b"after"), (True, b"before afterafter")):
        async with connected(folder, resume=resume) as (console, guest):
            viewer = Viewer()
            console.attach(viewer.show)
            await guest.say(b"after")
            assert await viewer.wait_for(len(text)) == text
    assert (folder / "console.log").read_bytes() == b"before afterafter"


async def test_a_successor_bounds_what_has_grown_meanwhile(folder: Path) -> None:
    log = folder / "console.log"
    text = b"".join(b"%08d\n" % number for number in range(400_000))
    log.write_bytes(text)
    async with connected(folder, resume=True) as (console, guest):
        assert bytes(console.scrollback) == text[-SCROLLBACK_BYTES:]
        assert (log.stat().st_size, older(log).stat().st_size) == (0, FILE_BYTES)
        await guest.say(b"after")
        assert log.read_bytes() == b"after"
        assert read_console_log(log, FILE_BYTES) == (text + b"after")[-FILE_BYTES:]


async def test_goes_on_with_the_successor_of_a_driver_that_died(folder: Path) -> None:
    guests: asyncio.Queue[Guest] = asyncio.Queue()
    path = folder / "console.sock"
    with (folder / "console.log").open("ab", buffering=0) as log:
        server = await asyncio.start_unix_server(lambda r, w: guests.put_nowait(Guest(r, w, log)), path)
        console = await Console.connect(path, folder / "console.log")
        viewer = Viewer()
        console.attach(viewer.show)
        async with asyncio.timeout(10):
            for text in (b"one ", b"two ", b"three "):
                guest = await guests.get()
                said = len(viewer.seen)
                await guest.say(text)
                assert (await viewer.wait_for(said + len(text)))[said:] == text
                console.write(text)
                assert await guest.reader.readexactly(len(text)) == text
                guest.writer.close()
        server.close()
        await console.close()
