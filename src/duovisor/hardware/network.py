"""Reads the network interfaces."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import find_link_name, list_folders, read_int, read_text

if TYPE_CHECKING:
    from pathlib import Path

ARPHRD_LOOPBACK = 772  # Linux include/uapi/linux/if_arp.h


class NicKind(StrEnum):
    """What stands behind an interface."""

    PHYSICAL = "physical"
    BRIDGE = "bridge"
    BOND = "bond"
    VLAN = "vlan"
    TAP = "tap"
    LOOPBACK = "loopback"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class Nic:
    """``state`` is the kernel's operstate; ``speed_mbit`` is None where the driver does not say."""

    name: str
    kind: NicKind
    mac: str
    driver: str | None
    state: str
    speed_mbit: int | None
    mtu: int


def read_nics(root: Path) -> tuple[Nic, ...]:
    """Every interface of this network namespace."""
    return tuple(map(_read_nic, list_folders(root / "sys/class/net")))


def _read_nic(folder: Path) -> Nic:
    speed_mbit = read_int(folder / "speed", -1)
    return Nic(
        name=folder.name,
        kind=_read_kind(folder),
        mac=read_text(folder / "address"),
        driver=find_link_name(folder / "device/driver"),
        state=read_text(folder / "operstate", "unknown"),
        speed_mbit=speed_mbit if speed_mbit > 0 else None,
        mtu=read_int(folder / "mtu"),
    )


def _read_kind(folder: Path) -> NicKind:
    kind = read_text(folder / "uevent").partition("DEVTYPE=")[2].split("\n")[0]
    if (folder / "tun_flags").exists():
        return NicKind.TAP
    if kind in (NicKind.BRIDGE, NicKind.BOND, NicKind.VLAN):
        return NicKind(kind)
    if read_int(folder / "type") == ARPHRD_LOOPBACK:
        return NicKind.LOOPBACK
    return NicKind.PHYSICAL if (folder / "device").exists() else NicKind.VIRTUAL
