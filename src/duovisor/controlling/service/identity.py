"""Who asks, and what that allows: three roles, each of which may do what the one below it may."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duovisor.controlling.service.peer import Peer

GROUP = "duovisor"


class Role(StrEnum):
    """``viewer`` reads; ``operator`` also runs VMs that exist; ``administrator`` may do everything."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def includes(self, needed: Role) -> bool:
        """Whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: ``user:NAME`` over the Unix socket, ``token:NAME`` with a token; none has no role."""

    name: str
    role: Role | None
    token_sha256: str | None = None


def identify_peer(peer: Peer, *, service_uid: int, admin_gid: int | None) -> Identity:
    """The identity of a process at the other end of the Unix socket, by what the kernel says of it.

    Root, the user who runs the service, and the members of the group are administrators.
    """
    is_admin = peer.uid in (0, service_uid) or (admin_gid is not None and admin_gid in peer.gids)
    return Identity(f"user:{find_user_name(peer.uid)}", Role.ADMINISTRATOR if is_admin else None)


def find_user_name(uid: int) -> str:
    """The name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find_gid(group: str) -> int | None:
    """The number of a group; None when this host has no such group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def service_identity() -> Identity:
    """The service itself, for what nobody asked for."""
    return Identity("service", Role.ADMINISTRATOR)


def current_uid() -> int:
    """The user who runs this process."""
    return os.geteuid()
