"""Which interfaces pass packets on: only those that a network needs, never the whole host at once.

``/proc/sys/net`` shows the network namespace of who reads it. Source: Linux, networking/ip-sysctl.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.errors import HostLacksError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duovisor.controlling.networks.host_links import Link

_SETTINGS = Path("/proc/sys/net/ipv4")
_IPV6 = Path("/proc/sys/net/ipv6/conf")
OURS = "dv-"


def find_uplinks(links: Mapping[str, Link], ours_before: Collection[str]) -> tuple[str, ...]:
    """The interfaces that have to pass answers on, and do not, or do because of us already."""
    leading = (
        link
        for link in links.values()
        if link.addresses and link.is_up and not link.is_loopback and not link.name.startswith(OURS)
    )
    return tuple(
        sorted(each.name for each in leading if each.name in ours_before or not passes_on(each.name))
    )


def passes_on(interface: str) -> bool:
    """Whether an interface passes on what it gets; one that is gone does not."""
    try:
        return _file(interface).read_text().strip() == "1"
    except OSError:
        return False


def set_passing_on(interface: str, *, on: bool) -> None:
    """Let an interface pass on what it gets, or not; one that is gone needs nothing. Raises as below."""
    path = _file(interface)
    if path.exists():
        _write(path, "1" if on else "0")


def is_router() -> bool:
    """Whether the whole host passes packets on, which is never our doing."""
    return (_SETTINGS / "ip_forward").read_text().strip() == "1"


def silence_ipv6(interface: str) -> None:
    """The host has no IPv6 address on an interface: guests could reach it past the rules for IPv4."""
    path = _IPV6 / interface / "disable_ipv6"
    if path.exists():
        _write(path, "1")


def _file(interface: str) -> Path:
    return _SETTINGS / "conf" / interface / "forwarding"


def _write(path: Path, value: str) -> None:
    if path.read_text().strip() == value:
        return
    try:
        path.write_text(value)
    except OSError as error:
        raise HostLacksError(
            f"cannot write {path}: {error.strerror}",
            remedy="let the service run as root, outside a container",
        ) from error
