"""What the store keeps of networks, under ``/networks/NAME``.

All that is on the host follows from it. The *intent* is written before the host is touched and goes with the
outcome, so that who comes after a ``kill -9`` knows what was meant.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pydantic import AwareDatetime  # noqa: TC002  # pydantic reads the annotation at run time

from duovisor.controlling.networks.records import Model, NetworkKind
from duovisor.controlling.store.documents import DocumentKind

NETWORKS = "/networks/"
TOP_DOMAIN = "internal"  # ICANN's resolution 2024.07.29.06: for private use, never delegated


class NetworkIntent(StrEnum):
    """What is being done to a network on the host; ``none`` at rest."""

    NONE = "none"
    CREATE = "create"
    DELETE = "delete"


class Reservation(Model):
    """The address of the card with this MAC, for as long as its VM is defined."""

    mac: str
    address: str
    vm: str


class Forward(Model):
    """A port of the host that leads to one of the card with this MAC."""

    protocol: Literal["tcp", "udp"]
    host_address: str | None
    host_port: int
    mac: str
    guest_port: int

    def clashes(self, other: Forward) -> bool:
        """Whether a packet could be meant for both."""
        same = (self.protocol, self.host_port) == (other.protocol, other.host_port)
        anywhere = None in (self.host_address, other.host_address)
        return same and (anywhere or self.host_address == other.host_address)


class NetworkDocument(Model):
    """A network; ``interface`` is its bridge, our own unless its ``type`` is bridged.

    ``uplinks`` are the host's interfaces that were made to pass packets on for it.
    """

    uuid: str
    type: NetworkKind
    interface: str
    subnet: str | None
    dhcp: bool
    vlans: bool
    uplinks: tuple[str, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    forwards: tuple[Forward, ...] = ()
    intent: NetworkIntent = NetworkIntent.NONE
    created_at: AwareDatetime

    @property
    def is_ours(self) -> bool:
        """Whether the bridge was made by us."""
        return self.type is not NetworkKind.BRIDGED

    @property
    def network(self) -> IPv4Network | None:
        """The subnet, if the host has an address there."""
        return IPv4Network(self.subnet) if self.subnet else None

    @property
    def gateway(self) -> IPv4Address | None:
        """The host's address there: the first one."""
        return None if self.network is None else self.network[1]

    def changed(self, **changes: object) -> NetworkDocument:
        """The same network with other values."""
        return self.model_copy(update=changes)

    def find_address(self, mac: str) -> str | None:
        """The address that is kept for a card."""
        return next((each.address for each in self.reservations if each.mac == mac), None)


def build_label(name: str) -> str:
    """A name as a label of the DNS (RFC 1123, 2.1), which may come out the same for two of ours; pure."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or "x"


def build_domain(network: str) -> str:
    """What the names in a network end in; pure."""
    return f"{build_label(network)}.{TOP_DOMAIN}"


NETWORK_KIND = DocumentKind("network", NetworkDocument)
