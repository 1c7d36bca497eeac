"""A move whose owner was killed: which of the two VMMs is the VM, and the end of the other.

The old VMM is, until the new one was told to go and did. What was written down last tells how far it came;
where it was being decided, the new VMM is asked. One that ended in between took the VM with it: the guest may
have run on, and the old VMM knows nothing of that.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.leftovers import adopt_process, end_processes
from duovisor.controlling.machine_place import DECIDED
from duovisor.hypervisor.errors import QmpTimeoutError, VmmGoneError
from duovisor.hypervisor.qemu.console import QMP_SOCKET
from duovisor.hypervisor.qmp import Qmp

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.description import IncarnationDescription, MachineDescription
    from duovisor.controlling.incarnation import Incarnation

# QEMU's RunState of a VMM that was given another's state and was not told to go
NEVER_WENT = frozenset({"inmigrate", "paused", "prelaunch"})


class ConcludedMove(NamedTuple):
    """A VM that is on one VMM; ``is_undone``: on the old one, which may stand still for the move."""

    description: MachineDescription
    is_undone: bool


async def conclude_move(left: MachineDescription, run_dir: Path) -> ConcludedMove:
    """Finish or undo the move of a VM that nobody owns, if it was moving; its other VMM is ended.

    Raises ``VmmGoneError`` when both VMMs are gone, or the new one ended as it took over.
    """
    if left.other is None:
        return ConcludedMove(left, is_undone=False)
    old, new = sorted((left.current, left.other), key=lambda each: each.number)
    decided = (run_dir / DECIDED).exists()
    goes_on = left.current is new or (decided and await _went(left, new, run_dir))
    winner, loser = (new, old) if goes_on else (old, new)
    await end_processes(loser, run_dir / str(loser.number))
    shutil.rmtree(run_dir / str(loser.number), ignore_errors=True)
    (run_dir / DECIDED).unlink(missing_ok=True)
    return ConcludedMove(left.model_copy(update={"current": winner, "other": None}), is_undone=not goes_on)


async def _went(left: MachineDescription, new: IncarnationDescription, run_dir: Path) -> bool:
    """Whether a VMM that was to take over did. Raises ``VmmGoneError`` when it has ended."""
    folder = run_dir / str(new.number)
    living = [adopt_process(each, folder) for each in new.processes if each.is_vmm]
    if not any(living):
        raise VmmGoneError(f"{left.spec.name}: the VMM ended as it took over from another one")
    qmp = Qmp(left.spec.name)
    try:
        await qmp.connect(folder / f"{QMP_SOCKET}.sock")
        return await qmp.query_status() not in NEVER_WENT
    except QmpTimeoutError as error:
        raise VmmGoneError(f"{error.message}; it was taking over from another VMM") from error
    finally:
        await qmp.disconnect()
        for process in living:
            if process is not None:
                process.release()


def take_disks_back(incarnation: Incarnation) -> None:
    """Lock the images whose locks the other VMM was given. Raises ``DiskLockedError``."""
    for disk, descriptor in incarnation.list_images():
        lock_disk(descriptor, disk.path, read_only=disk.read_only)
