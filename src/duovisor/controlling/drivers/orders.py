"""What an owner's packet means, field by field; everything that is not as it must be is a ``DriverError``."""

from __future__ import annotations

import os
import socket

from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from duovisor.controlling.drivers.control import Packet

MAX_POLL_US = 1000
MAX_HANG_S = 86_400.0


class Assignment:
    """An order to serve or to stand by; it owns its descriptors until they are taken."""

    __slots__ = ("descriptors", "driver", "hang_s", "options", "poll_us", "rate", "stands_by")

    def __init__(self, order: dict[str, Any], descriptors: dict[str, int]) -> None:
        self.descriptors = descriptors
        self.stands_by = order.get("do") == "stand_by"
        self.driver = str(order.get("driver"))
        self.options: list[str] = order.get("options", [])
        self.poll_us: int = order.get("poll_us", 0)
        self.hang_s: float = order.get("hang_s", 0.0)
        self.rate = parse_rate(order)

    def find(self, name: str) -> int:
        """A descriptor that this assignment keeps and closes."""
        if name not in self.descriptors:
            raise DriverError(f"the descriptor {name} is missing")
        return self.descriptors[name]

    def take(self, name: str) -> int | None:
        """A descriptor for the caller to close, if it came."""
        return self.descriptors.pop(name, None)

    def take_socket(self, name: str) -> socket.socket | None:
        """A descriptor as a socket, if it came."""
        descriptor = self.descriptors.get(name)
        if descriptor is None:
            return None
        try:
            made = socket.socket(fileno=descriptor)
        except OSError as error:
            raise DriverError(f"the descriptor {name} is no socket: {error.strerror}") from error
        del self.descriptors[name]
        return made

    def require_socket(self, name: str) -> socket.socket:
        """A descriptor that must have come, as a socket."""
        self.find(name)
        made = self.take_socket(name)
        assert made is not None
        return made

    def take_others(self) -> dict[str, int]:
        """What is for the device: every descriptor that the partition does not use itself."""
        own = {"listener", "page", "channel", "succession", "active", "pager", "userfault"}
        return {name: self.descriptors.pop(name) for name in tuple(self.descriptors) if name not in own}

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])


def parse_assignment(packet: Packet) -> Assignment:
    """An order to serve or to stand by, with its descriptors."""
    order = packet.message
    options, poll_us, hang_s = order.get("options", []), order.get("poll_us", 0), order.get("hang_s", 0.0)
    if not isinstance(options, list) or not all(isinstance(word, str) for word in options):
        raise DriverError("options is not a list of words")
    if type(poll_us) is not int or not 0 <= poll_us <= MAX_POLL_US:
        raise DriverError(f"poll_us is {poll_us!r}, not a number from 0 to {MAX_POLL_US}")
    if type(hang_s) not in (int, float) or not 0 <= hang_s <= MAX_HANG_S:
        raise DriverError(f"hang_s is {hang_s!r}, not a number from 0 to {MAX_HANG_S:g}")
    return Assignment(order, packet.take_descriptors())


def parse_rate(order: dict[str, Any]) -> tuple[int, int]:
    """How many requests and bytes a second may be let through; 0 is no limit."""
    rate = order.get("rate", [0, 0])
    if not isinstance(rate, list) or len(rate) != 2 or any(type(n) is not int or n < 0 for n in rate):
        raise DriverError(f"rate is {rate!r}, not two numbers")
    return rate[0], rate[1]


def parse_name(packet: Packet, field: str) -> str:
    """The name of a successor."""
    name = packet.message.get(field)
    if not isinstance(name, str) or not name:
        raise DriverError(f"{field} is {name!r}, not a name")
    return name
