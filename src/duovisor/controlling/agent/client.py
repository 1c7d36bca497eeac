"""A conversation with a guest's agent: from the connection to its end, within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from duovisor.controlling.agent.answers import (
    GuestInfo,
    read_count,
    read_field,
    read_interfaces,
    read_offline_blocks,
)
from duovisor.controlling.agent.errors import AgentError, AgentRefusedError, AgentSilentError
from duovisor.controlling.agent.protocol import SENTINEL, build_command, build_sync, parse_reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SYNC_S = 3.0
COMMAND_S = 5.0
FREEZE_S = 60.0  # it writes out all that is in the guest's page cache
MEMORY_S = 30.0
REFUSAL_S = 2.0  # a shutdown that begins is not answered, one that is refused is at once
MAX_REPLY_BYTES = 1 << 18
REMEDY = "is qemu-guest-agent installed in the guest, and does nobody else hold its port?"


class Agent:
    """A synchronised connection to the agent of one guest; one errand at a time."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._read = bytearray()

    async def synchronise(self) -> None:
        """Skip what an earlier conversation left. Raises ``AgentError``."""
        number = secrets.randbits(31)
        async with self._answering(SYNC_S):
            await self._send(build_sync(number))
            while True:
                await self._read_until(SENTINEL)
                with contextlib.suppress(AgentError):
                    if parse_reply(await self._read_until(b"\n")) == number:
                        return

    async def execute(self, command: str, *, timeout_s: float = COMMAND_S, **arguments: Any) -> Any:
        """Run a command and return what it returns. Raises ``AgentError``."""
        async with self._answering(timeout_s):
            await self._send(build_command(command, **arguments))
            return parse_reply(await self._read_until(b"\n"))

    async def read_info(self) -> GuestInfo:
        """What the guest tells of itself. Raises ``AgentSilentError``."""
        system = await self._ask("guest-get-osinfo")
        return GuestInfo(
            agent_version=read_field(await self._ask("guest-info"), "version"),
            hostname=read_field(await self._ask("guest-get-host-name"), "host-name"),
            system=read_field(system, "pretty-name"),
            kernel=read_field(system, "kernel-release"),
            frozen=await self.is_frozen(),
            interfaces=read_interfaces(await self._ask("guest-network-get-interfaces")),
        )

    async def shut_down(self) -> None:
        """Have the guest begin to shut down. Raises ``AgentError`` when it does not.

        Frozen file systems are thawed first: nothing could be shut down with them.
        """
        if await self.is_frozen():
            await self.thaw()
        try:
            await self.execute("guest-shutdown", timeout_s=REFUSAL_S, mode="powerdown")
        except AgentSilentError:
            return  # it is being done: only a refusal is answered

    async def set_time(self, seconds: float) -> None:
        """Set the guest's clock, in seconds since 1970. Raises ``AgentError``."""
        await self.execute("guest-set-time", time=int(seconds * 1e9))

    async def is_frozen(self) -> bool:
        """Whether the guest's file systems are frozen; one that cannot freeze them has not."""
        return bool(await self._ask("guest-fsfreeze-status") == "frozen")

    async def freeze(self) -> int:
        """Freeze the guest's file systems; how many there are. Raises ``AgentError``, also when none is."""
        count = read_count(await self.execute("guest-fsfreeze-freeze", timeout_s=FREEZE_S))
        if count == 0:
            raise AgentRefusedError(f"the agent of {self._name} found no file system to freeze")
        return count

    async def thaw(self) -> int:
        """Thaw the guest's file systems; how many there were. Raises ``AgentError``."""
        return read_count(await self.execute("guest-fsfreeze-thaw", timeout_s=FREEZE_S))

    async def switch_memory_on(self) -> int:
        """Have the guest use all of its memory; how many blocks it does not. Raises ``AgentError``."""
        offline = read_offline_blocks(await self.execute("guest-get-memory-blocks"))
        if offline:
            wanted = [{"phys-index": number, "online": True} for number in offline]
            await self.execute("guest-set-memory-blocks", timeout_s=MEMORY_S, **{"mem-blks": wanted})
            offline = read_offline_blocks(await self.execute("guest-get-memory-blocks"))
        return len(offline)

    async def _ask(self, command: str) -> Any:
        """What a command returns; nothing where the agent cannot, or may not now."""
        try:
            return await self.execute(command)
        except AgentRefusedError:
            return None

    @asynccontextmanager
    async def _answering(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise AgentSilentError(
                f"the agent of {self._name} did not answer within {timeout_s:g} s", remedy=REMEDY
            ) from error
        except OSError as error:
            raise AgentSilentError(f"the agent of {self._name} cannot be reached: {error}") from error

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _read_until(self, end: bytes) -> bytes:
        """What comes before ``end``, which is taken too. Raises ``AgentError``."""
        while (at := self._read.find(end)) < 0:
            if len(self._read) > MAX_REPLY_BYTES:
                raise AgentError(
                    f"the agent of {self._name} says more than {MAX_REPLY_BYTES >> 10} KiB at once"
                )
            data = await self._reader.read(1 << 16)
            if not data:
                raise AgentSilentError(f"the agent of {self._name} was cut off", remedy=REMEDY)
            self._read += data
        found = bytes(self._read[:at])
        del self._read[: at + len(end)]
        return found


@asynccontextmanager
async def connect_agent(path: Path, name: str) -> AsyncIterator[Agent]:
    """Connect to the agent behind a VM's port, and synchronise. Raises ``AgentError``."""
    try:
        async with asyncio.timeout(SYNC_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
    except (OSError, TimeoutError) as error:
        raise AgentSilentError(f"the agent of {name} cannot be reached: {error}") from error
    try:
        agent = Agent(name, reader, writer)
        await agent.synchronise()
        yield agent
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
