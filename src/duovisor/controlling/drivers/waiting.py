"""A partition that is nobody's yet: what all births have in common is done, and it waits for its order.

It is the first process of namespaces of its own, with an empty root, no capability but the three that
becoming somebody takes, and two descriptors: a socket of the factory's and /dev/null. With the order come its
birth socket and its log; from then on it is what a partition is that was forked for an order (``surrender``).
When the factory is gone, or wants it no more, it ends.
"""

from __future__ import annotations

import os
import select
import socket

from duovisor.controlling.drivers import system_calls as system
from duovisor.controlling.drivers.confinement import BIRTH, Confinement, enclose, keep_descriptors, surrender
from duovisor.controlling.drivers.control import receive_packet
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIMITS = ("address_space_bytes", "data_bytes", "open_files", "threads")


class Order:
    """What the factory's owner orders: whom a partition shall be, and what ``ps`` shows of it."""

    __slots__ = ("confinement", "title")

    def __init__(self, message: dict[str, Any]) -> None:
        """Raises ``DriverError``."""
        try:
            limits = {name: int(message["limits"][name]) for name in _LIMITS}
            self.confinement = Confinement(int(message["uid"]), int(message["gid"]), **limits)
            self.title = str(message["title"])
        except (KeyError, TypeError, ValueError) as error:
            raise DriverError(f"an order to create is not understood: {error!r}") from error


def wait_for_order(orders: int, null: int, command_line: system.CommandLine, *, as_root: bool) -> None:
    """Become a partition, once there is an order; ends this process when there will be none.

    ``orders`` and ``null`` are descriptors. Raises ``OSError``.
    """
    enclose(orders, null)
    system.keep_becoming_another()
    system.forbid_new_privileges()
    if as_root:
        system.forbid_inspection()
    with socket.socket(fileno=BIRTH) as connected:
        try:
            select.select([connected], [], [])
            packet = receive_packet(connected)
            assert packet is not None
        except EOFError:
            os._exit(0)
        order = Order(packet.message)
        birth, log = packet.descriptors
        command_line.overwrite(order.title)
        connected.detach()  # its number is the birth socket's from here on
    keep_descriptors(birth, log)
    surrender(order.confinement, as_root=as_root)
