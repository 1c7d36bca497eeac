"""What a VM holds on the host besides processes: its run folder, the memory folder, its locked disks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duovisor.controlling.leftovers import claim
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.run_folder import open_run_folder

if TYPE_CHECKING:
    from duovisor.controlling.memory_folder import MemoryFolder
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.directories import Directories


@dataclass(frozen=True)
class Place:
    """Where one VM lives; this process owns it until ``remove`` or ``release``."""

    folder: RunFolder
    memory: MemoryFolder
    disks: ExitStack = field(default_factory=ExitStack)

    def remove(self) -> None:
        """Take everything away; the VM's own files must be gone from the memory folder."""
        with ExitStack() as stack:
            stack.callback(self.disks.close)
            stack.callback(self.folder.remove)
            stack.callback(self.memory.close)

    def release(self) -> None:
        """Let go of everything; it stays for the next owner. A driver's descriptor keeps its disk locked."""
        with ExitStack() as stack:
            stack.callback(self.disks.close)
            stack.callback(self.folder.release)
            stack.callback(self.memory.release)


async def make_place(name: str, directories: Directories, disks: ExitStack) -> Place:
    """A place for a VM that is about to start; ``disks`` goes over to it.

    Raises ``NameInUseError``, ``HostLacksError`` or ``ControllingError``, and has undone everything then.
    """
    with ExitStack() as undo:
        undo.callback(disks.close)
        folder = open_run_folder(directories.vms, name)
        unclaimed = undo.enter_context(ExitStack())
        unclaimed.callback(folder.release)
        await claim(folder)
        unclaimed.pop_all()
        undo.callback(folder.remove)
        place = Place(folder, open_memory_folder(directories.runtime), disks)
        undo.pop_all()
    return place
