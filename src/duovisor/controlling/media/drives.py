"""The CD-ROM drives of one incarnation: what is in them, and who serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.errors import PartitionError
from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.media.server import FOLDER, ROLE, MediaServer
from duovisor.hypervisor.qemu.cdroms import cdrom_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.formats.process import FormatEnvironment
    from duovisor.controlling.supervision.records import Tell
    from duovisor.spec.vm import VirtualMachineSpec


class Media:
    """The media servers of a VMM that reads no image itself, by the number of their drive."""

    def __init__(self, run_dir: Path, note: Callable[[], None], tell: Tell) -> None:
        self._folder = run_dir / FOLDER
        self._note = note
        self._tell = tell
        self._servers: dict[int, MediaServer] = {}

    def start(self, spec: VirtualMachineSpec, environment: FormatEnvironment) -> None:
        """Start the servers of all media. Raises ``PartitionError``; ``end`` undoes everything."""
        try:
            self._folder.mkdir(mode=0o711, exist_ok=True)
        except OSError as error:
            raise PartitionError(f"cannot make {self._folder}: {error.strerror}") from error
        for index, cdrom in enumerate(spec.cdroms):
            if not cdrom.is_empty:
                self.insert(index, cdrom.path, environment)

    def insert(self, index: int, path: str, environment: FormatEnvironment) -> None:
        """Start the server of a medium; the drive has none. Raises ``PartitionError``."""
        server = MediaServer(environment, index, path, self._note, self._tell)
        self._servers[index] = (
            server  # before it starts: its process is written down with those that are here
        )
        server.start()

    async def eject(self, index: int) -> None:
        """End the server of a drive's medium, if it has one."""
        server = self._servers.get(index)
        if server is not None:
            await server.end()
            del self._servers[index]  # after its end: it is written down as long as it lives
            self._note()

    def adopt(
        self,
        spec: VirtualMachineSpec,
        left: Iterable[ProcessDescription],
        environment: FormatEnvironment,
        run_dir: Path,
    ) -> None:
        """Take over the servers that a previous owner left; those that have ended are started again."""
        found = {each.device: each for each in left if is_media_server(each)}
        for index, cdrom in enumerate(spec.cdroms):
            if cdrom.is_empty:
                continue
            server = MediaServer(environment, index, cdrom.path, self._note, self._tell)
            described = found.get(cdrom_name(index))
            running = adopt_process(described, run_dir) if described is not None else None
            server.adopt(running, described)
            self._servers[index] = server

    def describe(self) -> list[ProcessDescription]:
        """The servers' processes."""
        return [each.described for each in self._servers.values() if each.described is not None]

    def list_running(self) -> set[str]:
        """The names of the drives whose medium is served at this moment."""
        return {server.name for server in self._servers.values() if server.is_running}

    async def end(self) -> None:
        """End all servers."""
        for index in tuple(self._servers):
            await self._servers[index].end()
            del self._servers[index]

    async def let_go(self) -> None:
        """Leave all servers running."""
        for server in self._servers.values():
            await server.let_go()


def is_media_server(described: ProcessDescription) -> bool:
    """Whether this process serves a CD-ROM drive's medium."""
    return described.role == ROLE
