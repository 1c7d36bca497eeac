"""Undoing what a killed owner left of a VM: its processes, its memory, its sockets, its run folder's content.

Every step can be repeated: who undoes may be killed as well.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.description import FILE, Phase, load_description
from duovisor.controlling.errors import NameInUseError
from duovisor.hypervisor.memory import remove_memory_files
from duovisor.process_identity import is_living

if TYPE_CHECKING:
    from duovisor.controlling.description import (
        IncarnationDescription,
        MachineDescription,
        ProcessDescription,
    )
    from duovisor.controlling.run_folder import RunFolder


def adopt_process(found: ProcessDescription, run_dir: Path) -> process.Process | None:
    """Watch a described process; ``None`` when it has ended."""
    return process.adopt(
        found.identity, found.argv, role=found.role, log=run_dir / found.log, sandboxed=found.sandboxed
    )


def can_go_on(machine: MachineDescription) -> bool:
    """Whether the VM came to run, was meant to outlive its owner, and its VMM lives."""
    vmms = [each for incarnation in machine.incarnations for each in incarnation.processes if each.is_vmm]
    return bool(machine.uuid) and machine.phase is Phase.RUNNING and any(is_living(v.identity) for v in vmms)


async def claim(folder: RunFolder) -> None:
    """Empty a run folder for a new VM of its name.

    Raises ``NameInUseError`` when the VM there runs on without an owner: it is to be adopted, not undone.
    """
    left = load_description(folder.path)
    if left is not None and can_go_on(left):
        raise NameInUseError(
            f"a VM named {left.spec.name!r} runs already; the service that started it does not",
            remedy="start the service again, or choose another --name",
        )
    await undo(folder, left)


async def undo(folder: RunFolder, left: MachineDescription | None) -> None:
    """End what is left of a VM and empty its run folder; the folder itself stays, and is ours."""
    if left is not None:
        for incarnation in left.incarnations:
            await end_processes(incarnation, folder.path / str(incarnation.number))
    await asyncio.to_thread(_remove_files, folder.path, left)


async def end_processes(left: IncarnationDescription, run_dir: Path) -> None:
    """End what is left of an incarnation, whose folder is ``run_dir``."""
    # the VMM first: with it gone the others end by themselves, and none takes that for a crash
    for found in sorted(left.processes, key=lambda each: not each.is_vmm):
        running = adopt_process(found, run_dir)
        if running is not None:
            await running.kill()


def _remove_files(folder: Path, left: MachineDescription | None) -> None:
    if left is not None:
        remove_memory_files(Path(left.memory_file))
    for path in sorted(folder.iterdir(), key=lambda each: each.name == FILE):  # the description last
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
