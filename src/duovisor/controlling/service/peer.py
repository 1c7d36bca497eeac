"""The kernel's word on who is at the other end of a Unix socket, handed to the application.

uvicorn does not pass it on, so its HTTP protocol is extended at the one place where a connection begins: the
credentials go into the state that every request and WebSocket of the connection gets. They are those of the
moment of connect(2) and cannot be forged. Source: unix(7), SO_PEERCRED; SO_PEERGROUPS since Linux 4.13.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it
GROUPS_BYTES = 1024  # 256 groups; Python's getsockopt takes no larger buffer
STATE_KEY = "peer"

_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """A process at the other end of a Unix socket; ``gids`` holds its primary and supplementary groups."""

    pid: int
    uid: int
    gids: frozenset[int]


def read_peer(connection: socket.socket) -> Peer | None:
    """Who connected; ``None`` for a socket that is not a Unix one."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, frozenset({gid, *_read_groups(connection, uid, gid)}))


def _read_groups(connection: socket.socket, uid: int, gid: int) -> Iterable[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
        return struct.unpack(f"{len(raw) // 4}I", raw)
    except OSError:  # ERANGE: in more groups than fit; the user database knows them too
        with contextlib.suppress(KeyError):
            return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
        return ()


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with the peer's credentials in ``scope["state"]``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        connection = transport.get_extra_info("socket")
        # uvicorn copies this for each request; TLS and TCP connections say None, never nothing
        self.app_state = {**self.app_state, STATE_KEY: None if connection is None else read_peer(connection)}
        super().connection_made(transport)
