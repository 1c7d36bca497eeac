"""The heir of last resort: the owner's own copy of a driver's session, for when driver and spare both died.

Holding it keeps the channel's connection open, so that the VMM does not notice; and a VMM that asks something
waits for the answer with all its devices. So it is not held for long while nobody serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from duovisor.channel.errors import ChannelError
from duovisor.channel.snapshot import Kind, SnapshotReceiver, send_snapshot

if TYPE_CHECKING:
    from duovisor.channel.snapshot import Snapshot


class Heir:
    """Receives the snapshots of one device's drivers, one after the other."""

    def __init__(self) -> None:
        self._held: Snapshot | None = None
        self._socket: socket.socket | None = None
        self._receiver: SnapshotReceiver | None = None

    @property
    def holds(self) -> bool:
        """Whether there is something to inherit."""
        self._receive()
        return self._held is not None

    def open(self) -> socket.socket:
        """The end for a driver to send its snapshots to; the caller closes it. The last snapshot stays."""
        self._close_socket()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket, self._receiver = ours, SnapshotReceiver(ours)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._receive)
        return theirs

    def bequeath(self) -> socket.socket | None:
        """A socket with a copy of the held snapshot in it, as the last word; the caller closes it."""
        self._receive()
        self._close_socket()
        if self._held is None:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            send_snapshot(ours, self._held, Kind.FINAL)
        except OSError:
            theirs.close()
            return None
        finally:
            ours.close()
        return theirs

    def let_go(self) -> None:
        """Close what is held: if nobody else has it, the VMM sees the connection end."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def close(self) -> None:
        """Hold nothing, and receive nothing more."""
        self._close_socket()
        self.let_go()

    def _receive(self) -> None:
        with contextlib.suppress(ChannelError, OSError):
            while self._receiver is not None and (snapshot := self._receiver.receive()) is not None:
                self.let_go()
                self._held = snapshot
            return
        self._close_socket()  # its driver is gone, or sends nonsense

    def _close_socket(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._receiver = None
