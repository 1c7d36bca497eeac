"""A KVM on which the thin VMM's processes run; any will do, for these guests have a few bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.thin_vmm.micro_guest import MicroVmm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
