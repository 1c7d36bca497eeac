"""The drivers that a partition can run, by the name that its owner gives."""

from __future__ import annotations

from duovisor.controlling.drivers import block
from duovisor.controlling.drivers.console import create_console_device, create_dropping_console
from duovisor.controlling.drivers.encrypted import create_encrypted_device
from duovisor.controlling.drivers.entropy import create_entropy_device
from duovisor.controlling.drivers.failing import (
    create_failing_device,
    create_failing_own_disk,
    create_parked_device,
)
from duovisor.controlling.drivers.faulty import create_faulty_device
from duovisor.controlling.drivers.formatted import create_formatted_device
from duovisor.controlling.drivers.net import create_dropping_net, create_net_device, create_parked_net
from duovisor.controlling.drivers.options import parse_block_options
from duovisor.controlling.drivers.own_driver import create_own_device, create_own_disk
from duovisor.controlling.drivers.resting import create_resting_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice

    CreateDevice = Callable[[list[str], dict[str, int]], VirtioDevice]
    """From option words and named descriptors, which it owns; raises ``DriverError``."""


def create_storage_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """A disk on a raw ``image``, or with a ``replay`` log on what a format process makes of its file."""
    if "replay" in descriptors:
        return create_formatted_device(parse_block_options(words), descriptors)
    return block.create_device(words, descriptors)


DRIVERS: dict[str, CreateDevice] = {
    "block": create_storage_device,
    "failing-block": create_failing_device,
    "parked-block": create_parked_device,
    "faulty-block": create_faulty_device,
    "encrypted": create_encrypted_device,
    "own-disk": create_own_disk,
    "failing-own-disk": create_failing_own_disk,
    "parked-own-disk": create_resting_device,
    "net": create_net_device,
    "failing-net": create_dropping_net,
    "parked-net": create_parked_net,
    "console": create_console_device,
    "failing-console": create_dropping_console,
    "rng": create_entropy_device,
    "own": create_own_device,
    "failing-device": create_resting_device,
    "parked-device": create_resting_device,
}
