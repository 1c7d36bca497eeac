"""The network driver of a partition: from option words and the descriptor of a TAP to a device."""

from __future__ import annotations

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.net_device import NetDevice
from duovisor.controlling.drivers.net_stand_ins import DroppingNet, ParkedNet
from duovisor.controlling.drivers.tap import Tap, open_tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.device import VirtioDevice


def create_net_device(words: list[str], descriptors: dict[str, int]) -> NetDevice:
    """A network card on the descriptor ``tap``, which it takes over; raises ``DriverError``.

    ``--mac ADDRESS`` drops what the guest sends from another address.
    """
    mac = parse_net_options(words)
    return NetDevice(_take_tap(descriptors), mac=mac)


def create_parked_net(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """A card that leaves everything to whoever comes next; from the same words and descriptors."""
    parse_net_options(words)
    return ParkedNet(_take_tap(descriptors))


def create_dropping_net(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """A card without a cable; from the same words and descriptors."""
    parse_net_options(words)
    return DroppingNet(_take_tap(descriptors))


def parse_net_options(words: list[str]) -> bytes | None:
    """The address that the guest may send from, if it may not from any; raises ``DriverError``."""
    if not words:
        return None
    if len(words) != 2 or words[0] != "--mac":
        raise DriverError(f"the words {' '.join(words)} are not --mac ADDRESS")
    try:
        mac = bytes.fromhex(words[1].replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or len(words[1]) != 17:
        raise DriverError(f"option --mac is {words[1]!r}, not an address like 52:54:00:12:34:56")
    return mac


def _take_tap(descriptors: dict[str, int]) -> Tap:
    if "tap" not in descriptors:
        raise DriverError("the descriptor tap is missing")
    return open_tap(descriptors["tap"])
