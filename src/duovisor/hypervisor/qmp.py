"""QMP, the VMM's control protocol: one typed method for each command that duovisor uses.

Stands on the ``qemu.qmp`` library of the QEMU project. Every command has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
)

from duovisor.hypervisor.errors import QmpError, QmpTimeoutError, VmmGoneError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from qemu.qmp import Message

COMMAND_TIMEOUT_S = 10.0

# the library logs each refused command and lost connection as an error; ours are raised, and shown once
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Qmp:
    """A connection to one VMM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._client = QMPClient(name)
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._migration = EventListener("MIGRATION")
        self._client.register_listener(self._migration)
        self.migration_active_at = 0.0  # seconds since 1970, when it had made ready

    @property
    def version(self) -> str:
        """What the VMM said of itself when it greeted: ``7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)``."""
        greeting = self._client.greeting
        return "" if greeting is None else format_version(greeting.QMP.version)

    async def connect(self, path: Path, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Connect and negotiate. Raises ``VmmGoneError`` or ``QmpTimeoutError``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.connect(str(path))
        except TimeoutError as error:
            raise QmpTimeoutError(f"{self.name} did not greet on QMP within {timeout_s:g} s") from error
        except (ConnectError, QMPError, OSError) as error:
            raise VmmGoneError(f"{self.name}: no VMM answers on QMP") from error

    async def disconnect(self) -> None:
        """Close the connection; the VMM stays."""
        try:
            await self._client.disconnect()
        except (QMPError, EOFError, OSError):
            return  # it was closed from the other side: the same outcome

    async def next_event(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next event; name and data."""
        return _read_event(await self._listener.get())

    async def wait_closed(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Wait until the VMM's end of the connection is closed and all it said was read.

        Raises ``TimeoutError``.
        """
        async with asyncio.timeout(timeout_s):
            await self._wait_not_running()

    def pending_events(self) -> list[tuple[str, dict[str, Any]]]:
        """Take the events that arrived and were not waited for."""
        return [_read_event(message) for message in self._listener.clear()]

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns.

        Raises ``QmpError`` (refused), ``QmpTimeoutError`` (outcome unknown) or ``VmmGoneError``.
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await self._client.execute(command, arguments or None)
        except ExecuteError as error:
            raise QmpError(f"{self.name}: {command}: {error}") from error
        except TimeoutError as error:
            raise QmpTimeoutError(
                f"{self.name}: {command} did not answer within {COMMAND_TIMEOUT_S:g} s; outcome unknown"
            ) from error
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise VmmGoneError(f"{self.name}: the VMM ended while {command} was under way") from error

    async def cont(self) -> None:
        """Let the processors run."""
        await self.execute("cont")

    async def stop(self) -> None:
        """Stop the processors; devices finish what is in flight."""
        await self.execute("stop")

    async def system_reset(self) -> None:
        """Press the reset button."""
        await self.execute("system_reset")

    async def system_powerdown(self) -> None:
        """Press the ACPI power button; what follows is the guest's choice."""
        await self.execute("system_powerdown")

    async def set_link(self, netdev: str, *, up: bool) -> None:
        """Connect or disconnect a network back end; the guest sees its card's carrier come or go."""
        await self.execute("set_link", name=netdev, up=up)

    async def quit(self) -> None:
        """End the VMM at once."""
        await self.execute("quit")

    async def query_status(self) -> str:
        """The run state, as QEMU names it (``running``, ``paused``, ``prelaunch``, …)."""
        return str((await self.execute("query-status"))["status"])

    async def query_node_sizes(self) -> dict[str, int]:
        """The size of every named block node in bytes, as the guest sees it."""
        nodes = await self.execute("query-named-block-nodes", flat=True)
        return {str(node["node-name"]): int(node["image"]["virtual-size"]) for node in nodes}

    async def query_iothreads(self) -> dict[str, int]:
        """The threads that serve disks, by the names that the plan gave them: the host's thread ids."""
        return {str(each["id"]): int(each["thread-id"]) for each in await self.execute("query-iothreads")}

    async def set_io_limits(self, device: str, *, iops: int, bytes_per_s: int) -> None:
        """How much a disk does in a second at most; 0 is no limit."""
        parts = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
        path = f"/machine/peripheral/{device}/virtio-backend"  # the disk is a device inside the PCI function
        await self.execute("block_set_io_throttle", id=path, iops=iops, bps=bytes_per_s, **parts)

    async def query_full_disks(self) -> tuple[str, ...]:
        """The devices whose requests met a full file system, by id."""
        blocks = await self.execute("query-block")
        full = [each for each in blocks if each.get("io-status") == "nospace"]
        return tuple(
            str(each.get("qdev", "")).partition("/virtio-backend")[0].rpartition("/")[2] for each in full
        )

    async def block_resize(self, node: str, size_bytes: int) -> None:
        """Make a block node larger, in its file too; the guest is told."""
        await self.execute("block_resize", **{"node-name": node, "size": size_bytes})

    async def getfd(self, name: str, descriptor: int) -> None:
        """Give the VMM a copy of a descriptor of ours, which it knows by ``name`` until it uses it."""
        self._send_descriptor(descriptor)
        await self.execute("getfd", fdname=name)

    async def add_fd(self, fdset: int, descriptor: int) -> None:
        """Give the VMM a copy of a descriptor of ours, which it opens as ``/dev/fdset/N``."""
        self._send_descriptor(descriptor)
        await self.execute("add-fd", **{"fdset-id": fdset})

    def _send_descriptor(self, descriptor: int) -> None:
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError, AssertionError) as error:
            raise VmmGoneError(f"{self.name}: the VMM takes no descriptor") from error

    async def save_machine(self, descriptor: str) -> None:
        """Have a stopped thin VMM write its state to the descriptor that it was sent by this name."""
        await self.execute("x-duovisor-save", fdname=descriptor)

    async def closefd(self, name: str) -> None:
        """Have the VMM close a descriptor that it was given and has not used."""
        await self.execute("closefd", fdname=name)

    async def query_migration_abilities(self) -> frozenset[str]:
        """The migration capabilities that this QEMU knows, switched on or not."""
        return frozenset(each["capability"] for each in await self.execute("query-migrate-capabilities"))

    async def set_migration(self, capabilities: Collection[str], **parameters: int) -> None:
        """Switch migration capabilities on, and set parameters by the names that QEMU has for them."""
        states = [{"capability": each, "state": True} for each in capabilities]
        await self.execute("migrate-set-capabilities", capabilities=states)
        await self.execute("migrate-set-parameters", **parameters)

    async def migrate(self, uri: str) -> None:
        """Begin to write the machine's state to ``uri``; ``next_migration_status`` tells how it goes on."""
        self._migration.clear()
        await self.execute("migrate", uri=uri)

    async def migrate_incoming(self, uri: str) -> None:
        """Begin to read the machine's state from ``uri``; only for one started with ``-incoming defer``."""
        self._migration.clear()
        await self.execute("migrate-incoming", uri=uri)

    async def migrate_cancel(self) -> None:
        """Give up writing the machine's state; without effect when none is under way."""
        await self.execute("migrate_cancel")

    async def query_migrate(self) -> tuple[str, str]:
        """The status of the last migration and what QEMU says went wrong; empty where there is nothing."""
        answer = await self.execute("query-migrate")
        return str(answer.get("status", "")), str(answer.get("error-desc", ""))

    async def next_migration_status(self) -> str:
        """Wait for the next step of a migration, which the capability ``events`` has QEMU tell of.

        Raises ``VmmGoneError`` when the connection ends instead: a QEMU that cannot load a state ends itself.
        """
        told = asyncio.create_task(self._migration.get())
        closed = asyncio.create_task(self._wait_not_running())
        try:
            await asyncio.wait({told, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                raise VmmGoneError(f"{self.name}: the VMM ended in the middle of a migration")
            message = told.result()
            status = str(_read_event(message)[1].get("status", ""))
            if status == "active":
                self.migration_active_at = _read_time(message)
            return status
        finally:
            told.cancel()
            closed.cancel()
            await asyncio.gather(told, closed, return_exceptions=True)

    async def _wait_not_running(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()


def format_version(version: Mapping[str, Any]) -> str:
    """A version as ``query-version`` and the greeting give it, with the distribution's package if it has one.

    Empty for what is not of QEMU's form (qapi/control.json, ``VersionInfo``).
    """
    match version:
        case {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": package}:
            name = str(package).strip(" ()")
            return f"{major}.{minor}.{micro}" + (f" ({name})" if name else "")
    return ""


def _read_event(message: Message) -> tuple[str, dict[str, Any]]:
    data = message.get("data")
    return str(message["event"]), data if isinstance(data, dict) else {}


def _read_time(message: Message) -> float:
    """When the VMM sent an event, in seconds since 1970."""
    told = message.get("timestamp")
    return float(told["seconds"] + told["microseconds"] / 1e6) if isinstance(told, dict) else 0.0
