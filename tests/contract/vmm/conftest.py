"""A host whose VM runs on one VMM and then on the other: QEMU under TCG, the thin one on any KVM."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.contract.thin_vmm.lab import Lab
from tests.contract.vmm.two_way_guest import build_two_way_image, count_for_ever

from duovisor.controlling.store.memory import open_memory_store
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hardware.kvm import KvmProbe, KvmState
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.vms.manager import VmManager

ACCELERATORS = {VmmKind.QEMU: "tcg", VmmKind.THIN: "kvm"}


class Stage(Lab):
    """The host; ``start`` gives it its VM, on the VMM ``kind``."""

    kind: VmmKind

    def load(self, make: Callable[..., bytes]) -> None:
        """The VM's guest from its next start on, written for both modes."""
        image = build_two_way_image(make(real_mode=True), make(real_mode=False))
        (self.root / "kernel").write_bytes(image)

    async def start(self, manager: VmManager, make: Callable[..., bytes] = count_for_ever) -> None:
        """Start a VM with this guest."""
        self.load(make)
        await self.define(manager, vmm=self.kind, accelerator=ACCELERATORS[self.kind])
        await manager.start("vm")


@pytest_asyncio.fixture(params=ACCELERATORS)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    if request.param is VmmKind.THIN and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no KVM that this user may open")
    # a Unix socket's path may have 107 bytes
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        found = read_capabilities(Path(name) / "cache")
        if not found.sandbox.works:
            pytest.skip(f"no sandbox here: {found.sandbox.reason}")
        if request.param is VmmKind.THIN:
            found = replace(found, kvm=KvmProbe(KvmState.WORKS, "for guests of a few bytes"))
        async with open_memory_store() as store:
            made = Stage(Path(name), store, found)
            made.kind = request.param
            yield made
            async with made.managed() as manager:
                if (await manager.get("vm")).status.pid is not None:
                    await manager.stop("vm")
