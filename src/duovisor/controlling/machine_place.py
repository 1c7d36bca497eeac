"""What a VM holds on the host besides processes: its run folder, and its memory."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.controlling.firmware_files import variables_path
from duovisor.controlling.leftovers import claim
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.run_folder import open_run_folder
from duovisor.hypervisor.memory import list_module_files, remove_memory_files

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.memory_folder import MemoryFolder
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.directories import Directories
    from duovisor.spec.vm import VirtualMachineSpec

CURRENT, DECIDED = "current", "decided"


@dataclass(frozen=True)
class Place:
    """Where one VM lives; this process owns it until ``remove`` or ``release``.

    ``lasting`` is the folder of what outlasts its runs; a VM in the foreground has none.
    """

    folder: RunFolder
    memory: MemoryFolder
    lasting: Path | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder.path

    @property
    def kept(self) -> Path:
        """The folder of what the VM's next run should find, as far as there is one."""
        return self.lasting or self.run_dir

    @property
    def memory_file(self) -> Path:
        """The file that is the guest's memory."""
        return self.memory.path / self.folder.path.name

    @property
    def module_files(self) -> tuple[Path, ...]:
        """The files for memory that comes to the guest while it runs, of a VM that has room for some."""
        return list_module_files(self.memory_file)

    def open_incarnation(self, number: int) -> Path:
        """Make the folder of an incarnation. Raises ``OSError``."""
        path = self.run_dir / str(number)
        path.mkdir(mode=0o711)
        return path

    def remove_incarnation(self, number: int) -> None:
        """Remove the folder of an incarnation that has ended."""
        shutil.rmtree(self.run_dir / str(number), ignore_errors=True)

    def give_files(self, spec: VirtualMachineSpec, owner: int | None) -> None:
        """Let the VMM that runs as ``owner`` have memory and variables; root has them anyway."""
        for path in (self.memory_file, *self.module_files, variables_path(spec, self.kept)):
            if owner is not None and path.exists():
                os.chown(path, owner, owner)

    def decide(self, number: int) -> None:
        """Note that the incarnation ``number`` is told to go on in the place of the current one."""
        (self.run_dir / DECIDED).write_text(str(number))

    def undecide(self) -> None:
        """The move is over."""
        (self.run_dir / DECIDED).unlink(missing_ok=True)

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
            stack.callback(remove_memory_files, self.memory_file)

    def release(self) -> None:
        """Let go of everything; it stays for the next owner."""
        with ExitStack() as stack:
            stack.callback(self.folder.release)
            stack.callback(self.memory.release)


async def make_place(name: str, directories: Directories, lasting: Path | None = None) -> Place:
    """A place for a VM that is about to start; ``lasting`` as in ``Place``.

    Raises ``NameInUseError``, ``HostLacksError`` or ``ControllingError``, and has undone everything then.
    """
    with ExitStack() as undo:
        folder = open_run_folder(directories.vms, name)
        unclaimed = undo.enter_context(ExitStack())
        unclaimed.callback(folder.release)
        await claim(folder)
        unclaimed.pop_all()
        undo.callback(folder.remove)
        place = Place(folder, open_memory_folder(directories.runtime), lasting)
        undo.pop_all()
    return place
