"""Changes the medium of a running VMM's CD-ROM drive, as a hand at its button does."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.errors import HypervisorError, QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.hypervisor.qmp import Qmp

OPEN_S = 5.0
RETRY_S = 0.2
TRIES, SHUT = 10, "is not open"
NO_ARGUMENTS: Mapping[str, str] = {}


class TrayLockedError(HypervisorError):
    """The guest holds the tray of its CD-ROM drive shut."""

    code = "tray-locked"


async def eject(qmp: Qmp, drive: str, node: str, *, force: bool) -> None:
    """Empty a drive, in which ``node`` may be.

    A guest that has mounted it is asked to let go, and has some seconds; ``force`` does not ask. Raises
    ``TrayLockedError`` or ``QmpError``.
    """
    await _do_with_open_tray(qmp, drive, "blockdev-remove-medium", force=force)
    if node in await qmp.query_node_sizes():
        await qmp.execute("blockdev-del", **{"node-name": node})
    await qmp.execute("blockdev-close-tray", id=drive)


async def insert(qmp: Qmp, drive: str, medium: dict[str, Any]) -> None:
    """Put a medium into an empty drive. Raises ``QmpError``; the drive is empty then."""
    node = medium["node-name"]
    await qmp.execute("blockdev-add", **medium)
    try:
        medium_named = {"node-name": node}
        await _do_with_open_tray(qmp, drive, "blockdev-insert-medium", medium_named, force=True)
    except QmpError:
        await qmp.execute("blockdev-del", **{"node-name": node})
        raise
    await qmp.execute("blockdev-close-tray", id=drive)


async def _do_with_open_tray(
    qmp: Qmp, drive: str, command: str, arguments: Mapping[str, str] = NO_ARGUMENTS, *, force: bool
) -> None:
    """Open the tray and do it; again if the guest has shut it meanwhile, as firmware does that resets it."""
    for left in reversed(range(TRIES)):
        await _open_tray(qmp, drive, force=force)
        try:
            await qmp.execute(command, id=drive, **arguments)
            return
        except QmpError as error:
            if SHUT not in str(error) or not left:
                raise


async def _open_tray(qmp: Qmp, drive: str, *, force: bool) -> None:
    deadline = time.monotonic() + OPEN_S
    while True:
        try:
            await qmp.execute("blockdev-open-tray", id=drive, force=force)
            return
        except QmpError as error:  # each try has the guest see its eject button pressed
            if "locked" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise TrayLockedError(
                    f"{qmp.name}: the guest holds the tray of {drive} shut",
                    remedy="unmount it in the guest, or use --force",
                ) from error
        await asyncio.sleep(RETRY_S)
