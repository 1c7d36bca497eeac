"""Devices that come to a QEMU that runs, and go from it, over QMP."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import QmpError, UnplugRefusedError, UnplugTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.hypervisor.qemu.hot_plug import Command
    from duovisor.hypervisor.qmp import Qmp

DELETED, REFUSED = "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"
PERIPHERALS = "/machine/peripheral"
ASKED_BEFORE = "in the process of unplug"  # QEMU asks the guest once, and remembers it
REMOVE_TIMEOUT_S, REMOVE_POLL_S = 5.0, 0.02  # a device that was deleted is let go of a moment later


class Unplugged:
    """The devices that a QEMU told it has let go of, or that its guest refused to."""

    def __init__(self) -> None:
        self._gone: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def tell(self, device: str, *, gone: bool) -> None:
        """An event about a device."""
        self._gone[device] = gone
        self._changed.set()
        self._changed = asyncio.Event()

    def forget(self, device: str) -> None:
        """What was told before does not count."""
        self._gone.pop(device, None)

    async def wait(self, device: str) -> bool:
        """Wait until something is told of the device: whether it is gone."""
        while device not in self._gone:
            await self._changed.wait()
        return self._gone.pop(device)


async def run(qmp: Qmp, commands: Iterable[Command]) -> None:
    """Run commands in order. Raises ``QmpError``, ``QmpTimeoutError`` or ``VmmGoneError``."""
    for command in commands:
        await qmp.execute(command.name, **command.arguments)


async def list_devices(qmp: Qmp) -> frozenset[str]:
    """The ids of all devices that were given one, at the start or later."""
    return frozenset(str(each["name"]) for each in await qmp.execute("qom-list", path=PERIPHERALS))


async def take_out(qmp: Qmp, device: str, unplugged: Unplugged, timeout_s: float) -> None:
    """Have the guest let go of a device, and wait for that.

    Raises ``UnplugTimeoutError`` (it may still let go of it later), ``UnplugRefusedError``, ``QmpError``.
    """
    unplugged.forget(device)
    try:
        await qmp.execute("device_del", id=device)
    except QmpError as error:
        if ASKED_BEFORE not in error.message:
            raise
    try:
        async with asyncio.timeout(timeout_s):
            gone = await unplugged.wait(device)
    except TimeoutError:
        raise UnplugTimeoutError(
            f"the guest of {qmp.name} did not let go of {device} within {timeout_s:g} s; it still has it",
            remedy="does its system run, and know ACPI hot-plug? It may still let go of it later",
        ) from None
    if not gone:
        raise UnplugRefusedError(f"the guest of {qmp.name} does not let go of {device}")


async def remove_back_end(qmp: Qmp, device: str) -> None:
    """Remove all that QEMU has behind a device that is not there, whatever of it there is.

    Raises ``QmpError`` when something stays.
    """
    deadline = asyncio.get_running_loop().time() + REMOVE_TIMEOUT_S
    while left := await _list_back_end(qmp, device):
        for command, key, name in left:
            with contextlib.suppress(QmpError):  # in use by what is not gone yet
                await qmp.execute(command, **{key: name})
        if asyncio.get_running_loop().time() > deadline:
            raise QmpError(f"{qmp.name}: QEMU keeps {left[0][2]} of {device}")
        await asyncio.sleep(REMOVE_POLL_S)
    with contextlib.suppress(QmpError):  # a descriptor that was handed over and not used
        await qmp.closefd(device)


async def _list_back_end(qmp: Qmp, device: str) -> list[tuple[str, str, str]]:
    """How each part behind a device is removed, users before what they use."""
    nodes = await qmp.query_node_sizes()
    found = [("blockdev-del", "node-name", name) for name in sorted(nodes) if _is_of(name, device)]
    objects = [str(each["name"]) for each in await qmp.execute("qom-list", path="/objects")]
    # a network back end is an object of no name; what shows it is that its card's channel, or TAP, has it
    found += [("netdev_del", "id", name) for name in await _list_netdevs(qmp) if _is_of(name, device)]
    channels = [str(each["label"]) for each in await qmp.execute("query-chardev")]
    found += [("chardev-remove", "id", name) for name in channels if _is_of(name, device)]
    found += [("object-del", "id", name) for name in objects if _is_of(name, device)]
    return found


async def _list_netdevs(qmp: Qmp) -> list[str]:
    """QEMU tells of network back ends to people alone: ``nic1-net: index=0,type=tap,…``."""
    said = str(await qmp.execute("human-monitor-command", **{"command-line": "info network"}))
    names = (line.strip().lstrip("\\ ").partition(":")[0] for line in said.splitlines())
    return [name for name in names if name]


def _is_of(name: str, device: str) -> bool:
    return name == device or name.startswith(f"{device}-")
