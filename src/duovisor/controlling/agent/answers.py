"""What a guest tells of itself, read with distrust: what is not as it should be is left out; pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from duovisor.controlling.agent.protocol import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_INTERFACES, MAX_ADDRESSES = 64, 32
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


class GuestInterface(BaseModel):
    """A network interface as the guest sees it; ``addresses`` are with their prefix: ``192.0.2.7/24``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mac: str
    addresses: tuple[str, ...]


class GuestInfo(BaseModel):
    """What a guest says of itself. None of it is verified; what it does not tell is empty.

    ``frozen``: its file systems are, and it tells little else then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_version: str = ""
    hostname: str = ""
    system: str = ""
    kernel: str = ""
    frozen: bool = False
    interfaces: tuple[GuestInterface, ...] = ()


def read_field(answer: Any, name: str) -> str:
    """A text in an answer; empty where there is none."""
    return clean(answer.get(name)) if isinstance(answer, dict) else ""


def read_interfaces(answer: Any) -> tuple[GuestInterface, ...]:
    """What ``guest-network-get-interfaces`` returned, without the loopback interface."""
    found = answer[:MAX_INTERFACES] if isinstance(answer, list) else []
    read = [_read_interface(each) for each in found if isinstance(each, dict)]
    return tuple(each for each in read if each.name and each.name != "lo")


def read_count(answer: Any) -> int:
    """How many file systems were frozen or thawed."""
    return answer if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < 1 << 16 else 0


def read_offline_blocks(answer: Any) -> tuple[int, ...]:
    """The memory blocks that a guest has switched off, of what ``guest-get-memory-blocks`` returned."""
    blocks = [each for each in answer if isinstance(each, dict)] if isinstance(answer, list) else []
    numbers = (each.get("phys-index") for each in blocks if each.get("online") is False)
    return tuple(each for each in numbers if isinstance(each, int) and 0 <= each < 1 << 32)


def _read_interface(given: dict[str, Any]) -> GuestInterface:
    mac = clean(given.get("hardware-address")).lower()
    addresses = given.get("ip-addresses")
    return GuestInterface(
        name=clean(given.get("name"), 64),
        mac=mac if _MAC.fullmatch(mac) else "",
        addresses=tuple(_read_addresses(addresses[:MAX_ADDRESSES] if isinstance(addresses, list) else [])),
    )


def _read_addresses(given: list[Any]) -> Iterator[str]:
    for each in given:
        if not isinstance(each, dict):
            continue
        try:
            yield str(ipaddress.ip_interface(f"{each.get('ip-address')}/{int(each.get('prefix', ''))}"))
        except (TypeError, ValueError):
            continue
