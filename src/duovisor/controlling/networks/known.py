"""The networks of this host in the store, and which VMs name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.networks.documents import NETWORK_KIND, NETWORKS, NetworkIntent
from duovisor.controlling.networks.errors import (
    NetworkExistsError,
    NetworkNotFoundError,
    NetworkRefusedError,
)
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.definitions import Definitions
from duovisor.spec.vm import BRIDGE_NETWORK, USER_NETWORK

if TYPE_CHECKING:
    from duovisor.controlling.networks.documents import NetworkDocument
    from duovisor.controlling.store.collection import Stored
    from duovisor.controlling.store.interface import Store


class KnownNetworks:
    """Networks by name. One task at a time changes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._networks = Collection(store, NETWORK_KIND, NETWORKS)
        self._definitions = Definitions(store)

    async def read_all(self) -> list[Stored[NetworkDocument]]:
        """All of them by name; a host has few."""
        return [self._networks.read(entry) async for entry in walk(self._store, NETWORKS)]

    async def get(self, name: str) -> NetworkDocument:
        """A network. Raises ``NetworkNotFoundError``."""
        found = await self._networks.find(name)
        if found is None:
            raise NetworkNotFoundError(
                f"there is no network {name!r}", remedy="duovisor network list shows all"
            )
        return found.document

    async def get_ready(self, name: str) -> NetworkDocument:
        """One that is whole. Raises ``NetworkNotFoundError`` or ``NetworkRefusedError``."""
        document = await self.get(name)
        if document.intent is not NetworkIntent.NONE:
            raise NetworkRefusedError(
                f"network {name} is half {document.intent}d",
                remedy=f"duovisor network delete {name} tries once more",
            )
        return document

    async def require_new(self, name: str) -> None:
        """Raises ``NetworkExistsError``, or ``NetworkRefusedError`` for a name that means something else."""
        if name in (USER_NETWORK, BRIDGE_NETWORK):
            raise NetworkRefusedError(f"{name!r} means something else in a VM's card", remedy="another name")
        if await self._networks.find(name) is not None:
            raise NetworkExistsError(f"there is a network {name!r} already", remedy="choose another name")

    async def create(self, name: str, document: NetworkDocument) -> None:
        """A new network, see ``require_new``."""
        await self._networks.create(name, document)

    async def write(self, name: str, document: NetworkDocument) -> None:
        """Replace what is known of a network."""
        await self._store.put(self._networks.key_of(name), NETWORK_KIND.encode(document))

    async def forget(self, name: str) -> None:
        """Delete what is known of a network; the host is another's business."""
        await self._store.delete(self._networks.key_of(name))

    async def read_users(self) -> dict[str, list[str]]:
        """The VMs whose definitions name a network, by that."""
        users: dict[str, list[str]] = {}
        async for record in self._definitions.scan():
            for name in sorted({nic.managed_network for nic in record.spec.nics} - {None}, key=str):
                users.setdefault(str(name), []).append(record.name)
        return users

    async def read_vm_names(self) -> set[str]:
        """Every VM that is defined."""
        return {record.name async for record in self._definitions.scan()}
