"""Ports of a bridge: whether they take part, their settings, and the addresses that were learned on them.

Sources: Linux ``if_bridge.h``, ``if_link.h``, ``neighbour.h``, ``net/bridge/br_netlink.c`` and ``br_fdb.c``.
"""

from __future__ import annotations

import socket
from contextlib import closing
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import NetworkError
from duovisor.controlling.networks.netlink import (
    CREATE,
    EXCL,
    NESTED,
    Message,
    Netlink,
    build_attribute,
    parse_attributes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_DELETE_LINK, _GET_LINK, _SET_LINK, _NEW_NEIGHBOUR, _GET_NEIGHBOUR = 17, 18, 19, 28, 30
_AF_BRIDGE = 7
_LINK = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_NEIGHBOUR = Struct("=B3xiHBB")  # struct ndmsg: family, index, state, flags, type
_SHORT = Struct("=H")
_WORD = Struct("=I")
_VLAN_NUMBER = Struct("=xxH")
_VLAN_INFO = Struct("=HH")  # struct bridge_vlan_info: flags, number
_LINK_INFO, _INFO_DATA, _VLAN_FILTERING = 18, 2, 7  # IFLA_LINKINFO, IFLA_INFO_DATA, IFLA_BR_VLAN_FILTERING
_ACCESS = 0x2 | 0x4  # BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED

# struct ndmsg
_PERMANENT, _STATIC, _REACHABLE = 0x80, 0x40, 0x02
_OF_PORT, _OF_BRIDGE, _STICKY = 0x02, 0x04, 0x40
_ADDRESS, _VLAN = 2, 5

_PORT, _FAMILY_SETTINGS, _EXTENT = 12, 26, 29  # IFLA_PROTINFO, IFLA_AF_SPEC, IFLA_EXT_MASK
_WITH_VLANS = 2
_BRIDGE_VLAN = 2
_STATE, _MULTICAST_ROUTER = 1, 25
_AS_IF_QUERIED = 3
LISTENING, FORWARDING = 1, 3

# IFLA_BRPORT_*: what an administrator may have set for one port: hairpin, guards, learning, flooding, ARP,
# multicast, tunnels, isolation and locks
_COPIED = {4, 5, 6, 7, 8, 9, 10, 12, 27, 28, 29, 30, 31, 32, 33, 39, 40}


class Settings(NamedTuple):
    """A port's settings as attributes, and its VLANs, each a ``struct bridge_vlan_info``."""

    values: tuple[tuple[int, bytes], ...]
    vlans: frozenset[bytes]


class Learned(NamedTuple):
    """An address behind a port, on a VLAN or (0) on none, with the state and flags of ``struct ndmsg``."""

    address: bytes
    vlan: int
    state: int
    flags: int


def list_learned(netlink: Netlink, port: int) -> list[Learned]:
    """The addresses that frames are sent to through ``port``, an interface's index. Raises ``OSError``."""
    question = Message(_GET_NEIGHBOUR, 0, _NEIGHBOUR.pack(_AF_BRIDGE, port, 0, 0, 0))
    found = (parse_learned(body, port) for body in netlink.ask(question))
    return [each for each in found if each is not None]


def parse_learned(body: bytes, port: int) -> Learned | None:
    """An entry of the bridge's table; ``None`` for the host's own addresses and those of other ports."""
    _, index, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    if index != port or flags & _OF_PORT or state & _PERMANENT:
        return None
    attributes = dict(parse_attributes(body[_NEIGHBOUR.size :]))
    vlan = _SHORT.unpack(attributes[_VLAN])[0] if _VLAN in attributes else 0
    return Learned(attributes[_ADDRESS], vlan, state, flags)


def build_place(entry: Learned, port: int, *, sticky: bool = False) -> Message:
    """Let ``port`` be where an address is. ``sticky``: also when it speaks on another port.

    What was learned ages on as it would have; what was configured stays configured.
    """
    state = _STATIC if entry.state & _STATIC else _REACHABLE
    flags = entry.flags & ~_STICKY | _OF_BRIDGE | (_STICKY if sticky else 0)
    return Message(_NEW_NEIGHBOUR, CREATE, _build_entry(entry.address, entry.vlan, state, flags, port))


def build_first_place(address: bytes, port: int) -> Message:
    """Let ``port`` be where an address is, if the bridge knows of none; EEXIST when it does."""
    return Message(_NEW_NEIGHBOUR, CREATE | EXCL, _build_entry(address, 0, _REACHABLE, _OF_BRIDGE, port))


def build_state(port: int, state: int) -> Message:
    """Let a port take part (``FORWARDING``) or get nothing. EBUSY when the bridge's own STP decides that."""
    return _build_setting(port, build_attribute(_STATE, bytes([state])))


def build_multicast_wish(port: int) -> Message:
    """Send every group's frames to a port, as though a query had come from there, for the next minutes.

    The bridge does not know which groups the guest has joined until the next query makes it say so again.
    """
    return _build_setting(port, build_attribute(_MULTICAST_ROUTER, bytes([_AS_IF_QUERIED])))


def read_port(netlink: Netlink, port: int) -> Settings:
    """The settings and VLANs of a port. Raises ``OSError``."""
    question = _LINK.pack(_AF_BRIDGE, 0, 0, 0, 0) + build_attribute(_EXTENT, _WORD.pack(_WITH_VLANS))
    answers = netlink.ask(Message(_GET_LINK, 0, question))
    found = next((body for body in answers if _LINK.unpack_from(body)[2] == port), b"")
    return parse_port(found)


def parse_port(body: bytes) -> Settings:
    """What an administrator may have set for the port that a message is about."""
    outer = dict(parse_attributes(body[_LINK.size :]))
    settings = tuple(each for each in parse_attributes(outer.get(_PORT, b"")) if each[0] in _COPIED)
    parts = parse_attributes(outer.get(_FAMILY_SETTINGS, b""))
    return Settings(settings, frozenset(value for kind, value in parts if kind == _BRIDGE_VLAN))


def build_copy(source: Settings, target: Settings, port: int) -> list[Message]:
    """Messages that give ``port``, which has the settings ``target``, those of another one."""
    messages = []
    if source.values != target.values:
        messages.append(_build_setting(port, b"".join(build_attribute(*each) for each in source.values)))
    if added := source.vlans - target.vlans:
        messages.append(_build_vlans(_SET_LINK, port, added))
    kept = {_VLAN_NUMBER.unpack(each) for each in source.vlans}
    if gone := {each for each in target.vlans if _VLAN_NUMBER.unpack(each) not in kept}:
        messages.append(_build_vlans(_DELETE_LINK, port, gone))
    return messages


def set_access_vlan(bridge: str, port: str, vlan: int) -> None:
    """Let a fresh port of a bridge be on one VLAN, untagged, and on no other.

    Raises ``NetworkError`` where the bridge does not tell VLANs from each other, else ``OSError``.
    """
    index = socket.if_nametoindex(port)
    with closing(Netlink()) as netlink:
        if not filters_vlans(netlink, bridge):
            raise NetworkError(
                f"a card cannot be on VLAN {vlan} of {bridge}, which does not tell VLANs from each other",
                remedy=f"ip link set {bridge} type bridge vlan_filtering 1, or leave vlan out",
            )
        netlink.change(build_access_vlan(read_port(netlink, index), vlan, index))


def filters_vlans(netlink: Netlink, bridge: str) -> bool:
    """Whether a bridge keeps VLANs apart. Raises ``OSError``."""
    index = socket.if_nametoindex(bridge)
    links = netlink.ask(Message(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0)))
    return any(parse_filtering(body) for body in links if _LINK.unpack_from(body)[2] == index)


def parse_filtering(body: bytes) -> bool:
    """Whether the link that a message is about is a bridge that keeps VLANs apart; pure."""
    for kind in (_LINK_INFO, _INFO_DATA, _VLAN_FILTERING):
        offset = _LINK.size if kind == _LINK_INFO else 0
        body = dict(parse_attributes(body[offset:])).get(kind, b"")
    return any(body)


def build_access_vlan(plain: Settings, vlan: int, port: int) -> list[Message]:
    """Messages that put ``port``, which has the settings ``plain``, on one VLAN, untagged; pure."""
    wanted = Settings(plain.values, frozenset({_VLAN_INFO.pack(_ACCESS, vlan)}))
    return build_copy(wanted, plain, port)


def _build_vlans(kind: int, port: int, vlans: Iterable[bytes]) -> Message:
    inner = b"".join(build_attribute(_BRIDGE_VLAN, each) for each in sorted(vlans))
    return Message(kind, 0, _build_link(port) + build_attribute(_FAMILY_SETTINGS | NESTED, inner))


def _build_setting(port: int, attributes: bytes) -> Message:
    return Message(_SET_LINK, 0, _build_link(port) + build_attribute(_PORT | NESTED, attributes))


def _build_link(port: int) -> bytes:
    return _LINK.pack(_AF_BRIDGE, 0, port, 0, 0)


def _build_entry(address: bytes, vlan: int, state: int, flags: int, port: int) -> bytes:
    body = _NEIGHBOUR.pack(_AF_BRIDGE, port, state, flags, 0) + build_attribute(_ADDRESS, address)
    return body + build_attribute(_VLAN, _SHORT.pack(vlan)) if vlan else body
