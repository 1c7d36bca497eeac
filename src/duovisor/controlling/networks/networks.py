"""The networks of this host: everything that is done to them, one thing at a time.

What touches the host is announced in the store before and settled after, so that ``recover`` can make or
remove what is half done. What a network consists of on the host, the store tells: a host that was restarted
gets all of it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

from duovisor.controlling.networks import host
from duovisor.controlling.networks.card_filter import sweep_filters
from duovisor.controlling.networks.checks import check_listener, check_wanted, require_bridge_of_host
from duovisor.controlling.networks.documents import Forward, NetworkDocument, NetworkIntent
from duovisor.controlling.networks.errors import (
    ForwardExistsError,
    ForwardNotFoundError,
    NetworkInUseError,
    NetworkRefusedError,
)
from duovisor.controlling.networks.host_links import build_home, read_links
from duovisor.controlling.networks.known import KnownNetworks
from duovisor.controlling.networks.records import NetworkKind
from duovisor.controlling.networks.recovery import NetworkReport, recover
from duovisor.controlling.networks.servers import Servers
from duovisor.controlling.networks.subnets import reserve
from duovisor.controlling.storage.steps import commit, in_thread
from duovisor.controlling.vms.records import ignore_progress, now
from duovisor.errors import DuovisorError
from duovisor.hypervisor.qemu.nics import mac_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.networks.records import Wanted
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import Progress
    from duovisor.directories import Directories
    from duovisor.spec.vm import NicSpec, VirtualMachineSpec

RUNTIME_FOLDER = "networks"


class Networks:
    """The networks of one state folder; every method raises ``DuovisorError``.

    ``tell`` is told, with a network's name, when its server has died.
    """

    def __init__(self, store: Store, directories: Directories, tell: Callable[[str, str], None]) -> None:
        self.known = KnownNetworks(store)
        self.servers = Servers(directories.runtime / RUNTIME_FOLDER, tell)
        self._home = build_home(directories.state)
        self._changing = asyncio.Lock()

    async def recover(self) -> NetworkReport:
        """Make what should be there, finish or undo what was interrupted; before anything else is done."""
        async with self._changing:
            return await recover(self.known, self.servers, self._home)

    async def close(self) -> None:
        """Let go of all servers; they run on."""
        await self.servers.let_go()

    async def create(self, name: str, wanted: Wanted, progress: Progress = ignore_progress) -> None:
        """Make a network. Raises ``NetworkExistsError``, ``NetworkRefusedError``, ``SubnetRefusedError``."""
        async with self._changing:
            await self.known.require_new(name)
            others = [each.document for each in await self.known.read_all()]
            place = await in_thread(check_wanted, name, wanted, others)
            document = NetworkDocument(
                uuid=str(uuid4()),
                type=wanted.kind,
                interface=place.interface,
                subnet=place.subnet,
                dhcp=place.subnet is not None and wanted.dhcp,
                vlans=wanted.vlans,
                uplinks=place.uplinks,
                intent=NetworkIntent.CREATE,
                created_at=now(),
            )
            await self.known.create(name, document)
            try:
                if document.is_ours:
                    progress(20, f"making {document.interface}")
                    await in_thread(host.make_on_host, self._home, document)
                if document.dhcp:
                    progress(50, "starting its DHCP and DNS server")
                    await self.servers.ensure(name, document)
            except BaseException:
                await commit(self._remove(name, document))
                raise
            await commit(self.known.write(name, document.changed(intent=NetworkIntent.NONE)))
        progress(100, describe(document))

    async def delete(self, name: str) -> None:
        """Delete a network with all that it consists of. Raises ``NetworkInUseError``."""
        async with self._changing:
            document = await self.known.get(name)
            await self._require_unused(name, document)
            deleting = document.changed(intent=NetworkIntent.DELETE)
            await self.known.write(name, deleting)
            await commit(self._remove(name, deleting))

    async def add_forward(self, name: str, forward: Forward, vm: str) -> None:
        """Let a port of the host lead to one of a VM's card. Raises ``ForwardExistsError``."""
        async with self._changing:
            document = await self.known.get_ready(name)
            if document.type is not NetworkKind.NAT:
                raise NetworkRefusedError(
                    f"ports lead into NAT networks, and {name} is {document.type}",
                    remedy="duovisor network create --kind nat",
                )
            if not document.dhcp:
                raise NetworkRefusedError(f"network {name} gives no addresses to lead a port to")
            for other in await self.known.read_all():
                for known in other.document.forwards:
                    if forward.clashes(known):
                        raise ForwardExistsError(
                            f"{forward.protocol} port {forward.host_port} of the host leads into network "
                            f"{other.id} already",
                            remedy=f"duovisor network show {other.id}",
                        )
            await in_thread(check_listener, forward)
            changed = await self._reserve(document, forward.mac, vm)
            changed = changed.changed(forwards=(*document.forwards, forward))
            await self._change_rules(name, document, changed)

    async def remove_forward(
        self, name: str, protocol: str, host_port: int, host_address: str | None
    ) -> None:
        """Let a port of the host lead nowhere. Raises ``ForwardNotFoundError``."""
        async with self._changing:
            document = await self.known.get_ready(name)
            wanted = (protocol, host_port, host_address)
            kept = tuple(f for f in document.forwards if (f.protocol, f.host_port, f.host_address) != wanted)
            if kept == document.forwards:
                raise ForwardNotFoundError(
                    f"network {name} has no {protocol} port {host_port}",
                    remedy=f"duovisor network show {name}",
                )
            await self._change_rules(name, document, document.changed(forwards=kept))

    async def place(self, spec: VirtualMachineSpec) -> VirtualMachineSpec:
        """The specification with a bridge and an address for each card on a network of ours.

        Raises ``NetworkNotFoundError`` or ``NetworkRefusedError``.
        """
        if not any(nic.managed_network for nic in spec.nics):
            return spec
        async with self._changing:
            nics = [await self._place(spec, slot, nic) for slot, nic in spec.numbered_nics()]
        return spec.model_copy(update={"nics": tuple(nics)})

    async def sweep(self) -> None:
        """Remove the rules of cards that are gone."""
        if await self.known.read_all():
            async with self._changing:
                await in_thread(sweep_filters)

    async def _place(self, spec: VirtualMachineSpec, index: int, nic: NicSpec) -> NicSpec:
        name = nic.managed_network
        if name is None:
            return nic
        document = await self.known.get_ready(name)
        if nic.vlan is not None and document.is_ours and not document.vlans:
            raise NetworkRefusedError(
                f"network {name} has no VLANs", remedy="leave vlan out, or make it with --vlans"
            )
        if not document.is_ours:
            await in_thread(require_bridge_of_host, document.interface)
        address = None
        if document.dhcp:
            mac = mac_of(spec.name, index, nic)
            changed = await self._reserve(document, mac, spec.name)
            if changed != document:
                await self.known.write(name, changed)
            if changed != document or self.servers.find_pid(name) is None:
                await self.servers.ensure(name, changed)
            address = changed.find_address(mac)
        return nic.model_copy(update={"bridge": document.interface, "address": address})

    async def _reserve(self, document: NetworkDocument, mac: str, vm: str) -> NetworkDocument:
        """With an address for a card; those of VMs that are not defined any more, and no port's, are free."""
        if any((each.mac, each.vm) == (mac, vm) for each in document.reservations):
            return document
        assert document.network is not None
        vms, ports = await self.known.read_vm_names(), {forward.mac for forward in document.forwards}
        kept = [each for each in document.reservations if each.vm in vms or each.mac in ports]
        return document.changed(reservations=reserve(document.network, kept, mac, vm))

    async def _change_rules(self, name: str, old: NetworkDocument, new: NetworkDocument) -> None:
        """Put another network's rules in force; if that fails, it is as it was."""
        await self.known.write(name, new)
        try:
            await commit(self._apply(name, new))
        except DuovisorError:
            await commit(self.known.write(name, old))
            raise

    async def _apply(self, name: str, document: NetworkDocument) -> None:
        await in_thread(host.replace_rules, document)
        if document.dhcp:
            await self.servers.ensure(name, document)

    async def _require_unused(self, name: str, document: NetworkDocument) -> None:
        if vms := (await self.known.read_users()).get(name):
            raise NetworkInUseError(
                f"network {name} has cards of {', '.join(vms)}",
                remedy=f"duovisor vm delete {vms[0]}, or edit it",
            )
        if document.is_ours:
            links = await in_thread(read_links)
            link = links.get(document.interface)
            if link is not None and link.ports:
                raise NetworkInUseError(
                    f"{', '.join(link.ports)} is on {document.interface}",
                    remedy="stop the VM whose card it is; `ip link set NAME nomaster` takes off another's",
                )

    async def _remove(self, name: str, document: NetworkDocument) -> None:
        await self.servers.remove(name)
        if document.is_ours:
            others = [each.document for each in await self.known.read_all() if each.id != name]
            await in_thread(host.remove_from_host, self._home, document, others)
        await self.known.forget(name)


def describe(document: NetworkDocument) -> str:
    """A network in a few words; pure."""
    return f"{document.interface}, {document.subnet}" if document.subnet else document.interface
