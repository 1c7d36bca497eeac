"""The dnsmasq of each network: started, told of changes, started again when it dies, found again, ended.

Each has a folder, ``networks/NAME`` in the runtime folder: its files, its log, and ``server.json``, in which
it is written down before it begins. It outlives the service, as VMs do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import time
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import NetworkError
from duovisor.controlling.networks import dnsmasq
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.process_identity import ProcessIdentity, open_living, read_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from duovisor.controlling.networks.documents import NetworkDocument

    Tell = Callable[[str, str], None]

RECORD, LOG = "server.json", "log"
ROLE = "network server"
READY = "started, version"
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # bubblewrap's way to say that its program was
READY_S, LOOK_EVERY_S, END_S = 10.0, 0.01, 5.0


class Server:
    """One network's server, kept alive until it is let go or ended."""

    def __init__(self, name: str, folder: Path, tell: Tell) -> None:
        self.name = name
        self._folder = folder
        self._tell = tell
        self._process: process.Process | None = None
        self._argv: tuple[str, ...] = ()
        self._backoff = Backoff()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process, or ``None`` when there is none now."""
        running = self._process
        return running.pid if running is not None and not running.has_ended else None

    async def open(self, document: NetworkDocument) -> None:
        """Let it run with what a network is now: the one that runs already, if its command is the same.

        Raises ``HostLacksError`` or ``NetworkError``; then there is none.
        """
        program, tools = dnsmasq.find_dnsmasq(), dnsmasq.find_tools()
        self._argv = dnsmasq.build_command(self.name, document, self._folder, program, tools)
        await asyncio.to_thread(self._write_files, document)
        found = _adopt(self._folder)
        if found is not None and found.argv != self._argv:
            await found.kill()
            found = None
        self._process = found
        if found is None:
            await self._start()
        else:
            found.send_signal(signal.SIGHUP)
        self._keeper = asyncio.create_task(self._keep(), name=f"{ROLE} of {self.name}")

    async def reload(self, document: NetworkDocument) -> None:
        """Tell it of cards and names that have changed."""
        await asyncio.to_thread(self._write_files, document)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def let_go(self) -> None:
        """Leave it running; this object is of no use any more."""
        await self._stop_keeping()
        if self._process is not None:
            self._process.release()

    async def end(self) -> None:
        """End it; its folder is another's business."""
        await self._stop_keeping()
        if self._process is not None:
            await self._process.kill()

    async def _start(self) -> None:
        _kill_program(self._folder)  # whoever killed bubblewrap has left it alone with the ports
        log = self._folder / LOG
        log.unlink(missing_ok=True)
        started = process.start(self._argv, role=ROLE, log=log, sandboxed=True, record=self._record)
        try:
            await self._wait_ready(started)
            self._record(started)
        except BaseException:
            await started.kill()
            raise
        self._process = started

    def _record(self, started: process.Process) -> None:
        """Once before it begins, and once when it has begun: then there is a program inside the sandbox."""
        program = started.program_pid()
        document = {
            "server": started.identity,
            "program": None if program == started.pid else read_identity(program),
            "argv": started.argv,
        }
        _write(self._folder / RECORD, json.dumps(document))

    async def _wait_ready(self, started: process.Process) -> None:
        deadline = time.monotonic() + READY_S
        while READY not in started.log.read_text(errors="replace"):
            if started.has_ended:
                said = started.last_words().removeprefix("dnsmasq: ")
                raise NetworkError(f"the DHCP and DNS server of network {self.name} does not start: {said}")
            if time.monotonic() > deadline:
                raise NetworkError(f"the DHCP and DNS server of network {self.name} does not begin to serve")
            await asyncio.sleep(LOOK_EVERY_S)  # dnsmasq tells nobody but its log

    async def _keep(self) -> None:
        """Start the next one whenever one has ended, until that leads nowhere."""
        began, how, status = time.monotonic(), "did not start", None
        while True:
            if self._process is not None:
                status = await self._process.wait()
                how, self._process = process.describe_exit(status), None
            lived_s = time.monotonic() - began
            killed = status in KILLED
            wait_s = self._backoff.died(time.monotonic(), lived_s=lived_s, requests=0, killed=killed)
            if wait_s is None:
                self._tell(self.name, f"its DHCP and DNS server {how} again and again, and is given up")
                return
            self._tell(self.name, f"its DHCP and DNS server {how}, and is started again")
            await asyncio.sleep(wait_s)
            began, how, status = time.monotonic(), "did not start", None
            try:
                await self._start()
            except (process.ProcessError, NetworkError) as error:
                self._tell(self.name, str(error))

    async def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    def _write_files(self, document: NetworkDocument) -> None:
        known, leases = self._folder / dnsmasq.KNOWN, self._folder / dnsmasq.LEASES
        for folder in (self._folder, known, leases):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if os.geteuid() == 0:
            uid = dnsmasq.server_uid(document)
            os.chown(leases, uid, uid)
        _write(known / dnsmasq.CARDS, dnsmasq.build_cards(document))
        _write(known / dnsmasq.NAMES, dnsmasq.build_names(document))


class Servers:
    """The servers of all networks, in the folder ``root``; ``tell`` is told when one has died."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self._root = root
        self._tell = tell
        self._servers: dict[str, Server] = {}

    def find_pid(self, name: str) -> int | None:
        """The process that serves a network, if one does."""
        server = self._servers.get(name)
        return None if server is None else server.pid

    async def ensure(self, name: str, document: NetworkDocument) -> None:
        """Let a network be served as it is now. Raises as ``Server.open``."""
        known = self._servers.get(name)
        if known is not None and known.pid is not None:
            await known.reload(document)
            return
        if known is not None:
            await known.end()
        server = self._servers[name] = Server(name, self._root / name, self._tell)
        try:
            await server.open(document)
        except BaseException:
            del self._servers[name]
            raise

    async def remove(self, name: str) -> None:
        """End a network's server, whoever started it, and remove its folder."""
        server = self._servers.pop(name, None)
        if server is not None:
            await server.end()
        folder = self._root / name
        if folder.exists():
            left = _adopt(folder)
            if left is not None:
                await left.kill()
            _kill_program(folder)
            await asyncio.to_thread(shutil.rmtree, folder)

    async def remove_others(self, names: Iterable[str]) -> list[str]:
        """End what belongs to no network of these; returns whose it was."""
        kept = set(names)
        found = sorted(each.name for each in self._root.iterdir()) if self._root.exists() else []
        gone = [name for name in found if name not in kept]
        for name in gone:
            await self.remove(name)
        return gone

    async def let_go(self) -> None:
        """Leave all of them running."""
        for server in self._servers.values():
            await server.let_go()
        self._servers.clear()


def _adopt(folder: Path) -> process.Process | None:
    """The server that is written down in a folder, if it lives."""
    try:
        found = json.loads((folder / RECORD).read_text())
        identity = ProcessIdentity(*found["server"])
        return process.adopt(identity, found["argv"], role=ROLE, log=folder / LOG, sandboxed=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none was started


def _kill_program(folder: Path) -> None:
    """End the program that is written down in a folder, if it lives without its sandbox's keeper."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / RECORD).read_text())["program"]
        pidfd = open_living(ProcessIdentity(*found))
        if pidfd is not None:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], END_S)
            finally:
                os.close(pidfd)


def _write(path: Path, text: str) -> None:
    """Put a whole file in a file's place."""
    half = path.with_name(f".{path.name}-half")
    half.write_text(text)
    half.replace(path)
