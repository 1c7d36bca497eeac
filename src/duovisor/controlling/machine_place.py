"""What a VM holds on the host besides processes: its run folder, and its memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.controlling.leftovers import claim
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.run_folder import open_run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.memory_folder import MemoryFolder
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.directories import Directories

CURRENT = "current"


@dataclass(frozen=True)
class Place:
    """Where one VM lives; this process owns it until ``remove`` or ``release``."""

    folder: RunFolder
    memory: MemoryFolder

    @property
    def run_dir(self) -> Path:
        return self.folder.path

    @property
    def memory_file(self) -> Path:
        """The file that is the guest's memory."""
        return self.memory.path / self.folder.path.name

    def open_incarnation(self, number: int) -> Path:
        """Make the folder of an incarnation. Raises ``OSError``."""
        path = self.run_dir / str(number)
        path.mkdir(mode=0o711)
        return path

    def point_to(self, number: int) -> None:
        """Let ``current`` in the run folder lead to an incarnation's folder. Raises ``OSError``."""
        fresh = self.run_dir / f"{CURRENT}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(str(number))
        fresh.replace(self.run_dir / CURRENT)

    def remove(self) -> None:
        """Take everything away."""
        with ExitStack() as stack:
            stack.callback(self.folder.remove)
            stack.callback(self.memory.close)
            stack.callback(self.memory_file.unlink, missing_ok=True)

    def release(self) -> None:
        """Let go of everything; it stays for the next owner."""
        with ExitStack() as stack:
            stack.callback(self.folder.release)
            stack.callback(self.memory.release)


async def make_place(name: str, directories: Directories) -> Place:
    """A place for a VM that is about to start.

    Raises ``NameInUseError``, ``HostLacksError`` or ``ControllingError``, and has undone everything then.
    """
    with ExitStack() as undo:
        folder = open_run_folder(directories.vms, name)
        unclaimed = undo.enter_context(ExitStack())
        unclaimed.callback(folder.release)
        await claim(folder)
        unclaimed.pop_all()
        undo.callback(folder.remove)
        place = Place(folder, open_memory_folder(directories.runtime))
        undo.pop_all()
    return place
