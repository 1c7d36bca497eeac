"""A KVM on which the thin VMM's processes run; any will do, for these guests have a few bytes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.contract.thin_vmm.lab import Lab
from tests.contract.thin_vmm.micro_guest import MicroVmm

from duovisor.controlling.store.memory import open_memory_store
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hardware.kvm import KvmProbe, KvmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.hardware.capabilities import HostCapabilities


class StartVmm:
    """Starts thin VMMs with micro guests, and ends them when the test does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[MicroVmm] = []

    def __call__(self, code: bytes, **options: Any) -> MicroVmm:
        """A VMM that has greeted; its guest waits for ``cont``."""
        vmm = self.start(code, **options)
        vmm.greet()
        return vmm

    def start(self, code: bytes, **options: Any) -> MicroVmm:
        """A VMM that may not have greeted yet."""
        self._started.append(MicroVmm(self.folder, code, **options))
        return self._started[-1]

    def close(self) -> None:
        for vmm in self._started:
            vmm.close()


@pytest.fixture
def start_vmm(tmp_path: Path) -> Iterator[StartVmm]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no KVM that this user may open")
    starter = StartVmm(tmp_path)
    yield starter
    starter.close()


@pytest.fixture
def capabilities(tmp_path: Path) -> HostCapabilities:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("there is no KVM that this user may open")
    found = read_capabilities(tmp_path / "cache")
    if not found.sandbox.works:
        pytest.skip(f"no sandbox here: {found.sandbox.reason}")
    return replace(found, kvm=KvmProbe(KvmState.WORKS, "for guests of a few bytes"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def lab(short_path: Path, capabilities: HostCapabilities) -> AsyncIterator[Lab]:
    async with open_memory_store() as store:
        lab = Lab(short_path, store, capabilities)
        yield lab
        async with lab.managed() as manager:
            if (await manager.get("vm")).status.pid is not None:
                await manager.stop("vm")
