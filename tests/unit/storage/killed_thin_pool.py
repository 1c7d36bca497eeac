"""As ``killed_storage``, with volumes in a thin pool, which is ``fake_lvm``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.killing import KillTrials, Steps
from tests.unit.storage.conftest import MIB, feeding, ref, refuse_online
from tests.unit.storage.fake_lvm import GROUP, POOL, FakeLvm

from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import PoolKind, VolumeState
from duovisor.controlling.storage.storage import Storage
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import list_volumes
from duovisor.directories import Directories

if TYPE_CHECKING:
    from duovisor.controlling.store.interface import Store

CONTENT = bytes(range(256)) * 4096


class Trials(KillTrials):
    """One host with a thin pool, on which storages are killed."""

    def __init__(self, root: Path) -> None:
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.directories.state.mkdir(parents=True)
        self.lvm = root / "lvm"
        super().__init__(root, self.directories.state)

    async def open_pool(self, store: Store) -> tuple[Storage, FakeLvm]:
        """A storage that has recovered, in which the pool is."""
        fake = FakeLvm(self.lvm)
        fake.install(pytest.MonkeyPatch())
        storage = Storage(store, self.directories)
        report = await storage.recover()
        self.kinds.update(what for what, names in report._asdict().items() if names)
        self.violations += report.problems
        await storage.pools.create("thin", f"/dev/{GROUP}/{POOL}", PoolKind.LVM_THIN, or_get=True)
        return storage, fake

    async def live(self, steps: Steps) -> None:
        """The lives of some volumes, with a note of what was acknowledged."""
        async with self.open_store(steps) as store:
            storage, _ = await self.open_pool(store)
            await storage.create(ref("thin/a"), MIB, None)
            self.acknowledged.write_text("a")
            await storage.resize(ref("thin/a"), 6 * MIB, refuse_online)
            await storage.clone(ref("thin/a"), ref("thin/b"), linked=True)
            self.acknowledged.write_text("a b")
            inbox = Inbox(len(CONTENT))
            async with feeding(inbox, CONTENT):
                await storage.receive(ref("thin/c"), Upload(), inbox)
            for name, left in (("a", "b c"), ("c", "b"), ("b", "")):
                self.acknowledged.write_text(left)
                await storage.delete(ref(f"thin/{name}"))

    async def recover(self, step: int) -> None:
        """What the next storage makes of it."""
        async with self.open_store() as store:
            storage, fake = await self.open_pool(store)
            found = {view.name: view for view in (await list_volumes(storage, None, 100, None)).items}
            if fake.names != sorted(f"{name}.raw" for name in found):
                self.violations.append(f"step {step}: there are {fake.names}, and known {sorted(found)}")
            if lost := set(self.acknowledged.read_text().split()) - set(found):
                self.violations.append(f"step {step}: {lost} were there and are not")
            for view in found.values():
                if view.state is not VolumeState.READY:
                    self.violations.append(f"step {step}: {view.name} is {view.state}")
                await storage.delete(ref(f"thin/{view.name}"))
            if fake.names:
                self.violations.append(f"step {step}: {fake.names} are left")


def main() -> None:
    """Run trials until a life is over before its step comes."""
    print(json.dumps(Trials(Path(sys.argv[1])).run(int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
