"""What is told of networks, and what is asked for in a new one."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict


class Model(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkKind(StrEnum):
    """Where a network leads: nowhere, out through the host's addresses, or onto a bridge of the host's."""

    ISOLATED = "isolated"
    NAT = "nat"
    BRIDGED = "bridged"


class NetworkState(StrEnum):
    """``missing``: what it consists of on the host is not all there."""

    READY = "ready"
    CREATING = "creating"
    DELETING = "deleting"
    MISSING = "missing"


class Wanted(Model):
    """A network as it is asked for; ``subnet`` null: one that is free, where it needs one."""

    kind: NetworkKind
    subnet: str | None = None
    dhcp: bool = True
    bridge: str | None = None
    vlans: bool = False


class Lease(Model):
    """The address that a card has, at every start; ``name`` is what it resolves to in its network."""

    mac: str
    address: str
    vm: str
    name: str


class ForwardView(Model):
    """A port of the host (of all its addresses: null) that leads to one of a VM."""

    protocol: Literal["tcp", "udp"]
    host_address: str | None
    host_port: int
    vm: str
    address: str
    guest_port: int


class NetworkView(Model):
    """A network; ``interface`` is its bridge on the host, ``gateway`` the host's address there.

    ``domain`` is what its names end in. ``vms`` are those whose definitions name it, ``forwarding`` the
    host's interfaces that pass packets on because of it. ``server_pid`` is what answers DHCP and DNS.
    """

    name: str
    kind: NetworkKind
    state: NetworkState
    problem: str
    interface: str
    subnet: str | None
    gateway: str | None
    domain: str | None
    dhcp: bool
    vlans: bool
    server_pid: int | None
    forwarding: tuple[str, ...]
    leases: tuple[Lease, ...]
    forwards: tuple[ForwardView, ...]
    vms: tuple[str, ...]
    created_at: AwareDatetime
