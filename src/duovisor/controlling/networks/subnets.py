"""Which subnet a network may have, and which address a card there; pure."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import islice
from typing import TYPE_CHECKING

from duovisor.controlling.networks.documents import Reservation
from duovisor.controlling.networks.errors import NetworkRefusedError, SubnetRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LONGEST, SHORTEST = 29, 16
CHOICES = tuple(IPv4Network(f"10.{second}.{third}.0/24") for second in (201, 202) for third in range(256))
PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


def parse_subnet(text: str) -> IPv4Network:
    """A subnet that can be a network's. Raises ``SubnetRefusedError``."""
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise SubnetRefusedError(
            f"{text!r} is no subnet: {error}", remedy="write for example 10.20.30.0/24"
        ) from error
    if not SHORTEST <= subnet.prefixlen <= LONGEST:
        raise SubnetRefusedError(
            f"{subnet} has {subnet.num_addresses} addresses", remedy=f"from /{SHORTEST} to /{LONGEST}"
        )
    if not any(subnet.subnet_of(each) for each in PRIVATE):
        raise SubnetRefusedError(
            f"{subnet} is not for private use, and would hide whoever has it",
            remedy=f"a part of {', '.join(map(str, PRIVATE))}",
        )
    return subnet


def check_overlap(subnet: IPv4Network, taken: Mapping[IPv4Network, str]) -> None:
    """Raises ``SubnetRefusedError`` when a subnet shares addresses with one that is ``taken``, by whom."""
    for other, owner in taken.items():
        if subnet.overlaps(other):
            raise SubnetRefusedError(
                f"{subnet} overlaps {other} of {owner}", remedy="leave --subnet out: a free one is found"
            )


def choose_subnet(taken: Mapping[IPv4Network, str]) -> IPv4Network:
    """One that nobody has. Raises ``SubnetRefusedError``."""
    for subnet in CHOICES:
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise SubnetRefusedError("every subnet to choose from is taken", remedy="name one with --subnet")


def reserve(
    subnet: IPv4Network, reservations: Iterable[Reservation], mac: str, vm: str
) -> tuple[Reservation, ...]:
    """The reservations, with one for a card: what it had, or the lowest free address.

    Raises ``NetworkRefusedError`` when another VM's card has that MAC, or no address is left.
    """
    known = {each.mac: each for each in reservations}
    if mac in known:
        if known[mac].vm != vm:
            raise NetworkRefusedError(
                f"the MAC {mac} of {vm} is that of a card of {known[mac].vm} in the same network",
                remedy=f"duovisor vm edit {vm} and give the card another mac, or none",
            )
        return tuple(known.values())
    used = {each.address for each in known.values()}
    for address in islice(subnet.hosts(), 1, None):  # the first is the host's
        if str(address) not in used:
            return (*known.values(), Reservation(mac=mac, address=str(address), vm=vm))
    raise NetworkRefusedError(
        f"{subnet} has no free address for {vm}", remedy="delete VMs that are not needed"
    )
