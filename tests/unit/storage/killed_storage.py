"""Kills a storage with -9 at step after step of a volume's life, and looks at what the next one makes of it.

A program: ``python -m tests.unit.storage.killed_storage FOLDER FIRST EVERY``. It prints one JSON object: how
many were ``killed``, ``kinds`` of recovery seen, ``violations`` (``tests.unit.killing``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.killing import KillTrials, Steps
from tests.unit.storage.conftest import MIB, feeding, ref, refuse_online

from duovisor.controlling.storage.heads import read_size
from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import VolumeFormat, VolumeState
from duovisor.controlling.storage.storage import Storage
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import list_volumes
from duovisor.directories import Directories

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 4096


class Trials(KillTrials):
    """One host on which storages are killed."""

    def __init__(self, root: Path) -> None:
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.directories.state.mkdir(parents=True)
        self.folder = self.directories.state / "volumes"
        super().__init__(root, self.directories.state)

    async def live(self, steps: Steps) -> None:
        """The lives of some volumes, with a note of what was acknowledged."""
        async with self.open_store(steps) as store:
            storage = Storage(store, self.directories)
            await storage.recover()
            await storage.create(ref("a"), 2 * MIB, VolumeFormat.RAW)
            self.acknowledged.write_text("a")
            await storage.resize(ref("a"), 4 * MIB, refuse_online)
            await storage.clone(ref("a"), ref("b"), linked=True)
            self.acknowledged.write_text("a b")
            await storage.resize(ref("b"), 8 * MIB, refuse_online)
            await storage.clone(ref("b"), ref("c"), linked=False)
            self.acknowledged.write_text("a b c")
            inbox = Inbox(len(CONTENT))
            async with feeding(inbox, CONTENT):
                await storage.receive(ref("d"), Upload(to=VolumeFormat.QCOW2), inbox)
            self.acknowledged.write_text("a b c d")
            for name, left in (("b", "a c d"), ("a", "c d"), ("c", "d"), ("d", "")):
                self.acknowledged.write_text(left)
                await storage.delete(ref(name))

    async def recover(self, step: int) -> None:
        """What the next storage makes of it."""
        async with self.open_store() as store:
            storage = Storage(store, self.directories)
            report = await storage.recover()
            self.kinds.update(what for what, names in report._asdict().items() if names)
            self.violations += [f"step {step}: {line}" for line in report.problems]
            page = await list_volumes(storage, None, 100, None)
            found = {view.name: view for view in page.items}
            known = {Path(view.path).name for view in page.items}
            files = {path.name for path in self.folder.iterdir()} if known else known
            if files != known:
                self.violations.append(f"step {step}: files {files}, volumes {known}")
            if lost := set(self.acknowledged.read_text().split()) - set(found):
                self.violations.append(f"step {step}: {lost} were there and are not")
            for view in found.values():
                if view.state is not VolumeState.READY:
                    self.violations.append(f"step {step}: {view.name} is {view.state}")
                elif read_size(Path(view.path), view.format) != view.size_bytes:
                    self.violations.append(f"step {step}: {view.name} has another size")
            self.violations += [f"step {step}: {line}" for line in self.check_content()]
            for name in ("b", "a", "c", "d"):
                if name in found:
                    await storage.delete(ref(name))
            if self.folder.exists() and any(self.folder.iterdir()):
                self.violations.append(f"step {step}: {list(self.folder.iterdir())} are left")

    def check_content(self) -> Iterator[str]:
        """Images that QEMU's own tool finds damaged."""
        for path in self.folder.glob("*.qcow2"):
            done = subprocess.run(["qemu-img", "check", "-q", path], capture_output=True, check=False)
            if done.returncode not in (0, 3):
                yield f"{path.name} is damaged: {done.stderr.decode()}"


def main() -> None:
    """Run trials until a life is over before its step comes."""
    print(json.dumps(Trials(Path(sys.argv[1])).run(int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
