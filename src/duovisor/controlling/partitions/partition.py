"""A driver partition as its owner holds it: its process, and the connection it was born with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.process import Process

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.partitions.control import ControlConnection
    from duovisor.process_identity import ProcessIdentity

STATUS_TIMEOUT_S = 1.0


class PartitionProcess(Process):
    """A partition's process, whose parent is the factory: that tells how it ended."""

    def __init__(
        self, identity: ProcessIdentity, pidfd: int, argv: tuple[str, ...], role: str, log: Path
    ) -> None:
        super().__init__(identity, pidfd, argv, role, log, sandboxed=False)
        self._status: int | None = None
        self._told = asyncio.Event()

    @property
    def returncode(self) -> int | None:
        return self._status

    def tell_status(self, status: int | None) -> None:
        """The factory says how the process ended (negative: the signal), or is gone itself (``None``)."""
        self._status = status
        self._told.set()

    async def wait(self) -> int | None:
        """Wait for the end of the process; return its exit status (negative: the signal; None: unknown)."""
        await super().wait()
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                await self._told.wait()
        except TimeoutError:
            pass  # the factory was killed as well
        return self._status


class Partition:
    """A partition at its gate: nothing happens before ``control`` tells it to; closed first, it ends."""

    def __init__(self, name: str, process: PartitionProcess, control: ControlConnection) -> None:
        self.name = name
        self.process = process
        self.control = control
