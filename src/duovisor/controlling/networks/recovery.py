"""What is made of networks when the service starts: what should be there, is; what is half done, is not."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.networks import host
from duovisor.controlling.networks.card_filter import sweep_filters
from duovisor.controlling.networks.documents import NetworkIntent
from duovisor.controlling.networks.forwarding import OURS
from duovisor.controlling.recovery_report import count_found
from duovisor.controlling.storage.steps import in_thread
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from duovisor.controlling.networks.documents import NetworkDocument
    from duovisor.controlling.networks.known import KnownNetworks
    from duovisor.controlling.networks.servers import Servers


class NetworkReport(NamedTuple):
    """Networks that were removed: deletions finished, creations rolled back; leftovers of none; problems."""

    finished: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = count_found(
            ("networks deleted", self.finished),
            ("rolled back", self.rolled_back),
            ("leftovers removed", self.removed),
        )
        return ", ".join([*parts, *self.problems])


async def recover(known: KnownNetworks, servers: Servers, home: str) -> NetworkReport:
    """Bring the store and the host together again; each step can be repeated."""
    found = await known.read_all()
    finished: list[str] = []
    rolled_back: list[str] = []
    problems: list[str] = []
    for network in found:
        name, document = network.id, network.document
        try:
            match document.intent:
                case NetworkIntent.NONE:
                    await _make(name, document, servers, home)
                    continue
                case NetworkIntent.CREATE:
                    rolled_back.append(name)
                case NetworkIntent.DELETE:
                    finished.append(name)
            await servers.remove(name)
            if document.is_ours:
                others = [each.document for each in found if each.id != name]
                await in_thread(host.remove_from_host, home, document, others)
            await known.forget(name)
        except (DuovisorError, OSError) as error:
            problems.append(f"network {name}: {error}")
    left = await known.read_all()
    removed = await servers.remove_others(each.id for each in left)
    if found or removed or has_bridges():  # a host without networks is not looked through
        try:
            removed += await in_thread(host.remove_orphans, home, {each.document.uuid for each in left})
            await in_thread(sweep_filters)
        except DuovisorError as error:
            problems.append(str(error))
    return NetworkReport(tuple(finished), tuple(rolled_back), tuple(removed), tuple(problems))


def has_bridges() -> bool:
    """Whether an interface is called as ours are, and we may do something about it."""
    return os.geteuid() == 0 and any(name.startswith(OURS) for _, name in socket.if_nameindex())


async def _make(name: str, document: NetworkDocument, servers: Servers, home: str) -> None:
    if document.is_ours:
        await in_thread(host.make_on_host, home, document)
    if document.dhcp:
        await servers.ensure(name, document)
