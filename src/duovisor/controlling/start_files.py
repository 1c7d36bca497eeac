"""Files that are made for a VM's start and removed when it has ended; in a folder of their kind's own."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from duovisor.controlling.vms.records import EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from duovisor.controlling.vms.records import VmEvent
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.spec.vm import VirtualMachineSpec

ENDS = frozenset({EventKind.STOPPED, EventKind.CRASHED, EventKind.START_FAILED, EventKind.ROLLED_BACK})


class StartFiles(ABC):
    """The files of one host's VMs in ``folder``, each the VM's name with one of ``suffixes``."""

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @abstractmethod
    def make(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        """Make what a specification asks for, and say in it where that is; called in a thread."""

    def around(self, lend: Lend) -> Lend:
        """What lends a specification its volumes, and then these files."""

        @asynccontextmanager
        async def lend_both(spec: VirtualMachineSpec) -> AsyncIterator[VirtualMachineSpec]:
            async with lend(spec) as found:
                yield await asyncio.to_thread(self.make, found)

        return lend_both

    def on_event(self, event: VmEvent) -> None:
        """A VM that has ended needs its files no more."""
        if event.kind in ENDS:
            for suffix in self.suffixes:
                self.path_of(event.name, suffix).unlink(missing_ok=True)

    def sweep(self, running: Collection[str]) -> None:
        """Remove what belongs to no VM that runs."""
        for suffix in self.suffixes:
            for path in self._folder.glob(f"*{suffix}"):
                if path.name.removesuffix(suffix) not in running:
                    path.unlink()

    def path_of(self, name: str, suffix: str) -> Path:
        """Where a VM's file is."""
        return self._folder / f"{name}{suffix}"

    def write(self, path: Path, content: bytes, *, mode: int, uid: int = -1) -> None:
        """Write a new file, which nobody could open before it had its mode. Raises ``OSError``.

        It is ``uid``'s, unless this process may not give it away: who uses it has our own uid then.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            with suppress(PermissionError):
                os.fchown(file.fileno(), uid, -1)
