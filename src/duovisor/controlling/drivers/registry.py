"""The drivers that a partition can run, by the name that its owner gives."""

from __future__ import annotations

from duovisor.controlling.drivers import block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice

    CreateDevice = Callable[[list[str], dict[str, int]], VirtioDevice]
    """From option words and named descriptors, which it owns; raises ``DriverError``."""

DRIVERS: dict[str, CreateDevice] = {"block": block.create_device}
