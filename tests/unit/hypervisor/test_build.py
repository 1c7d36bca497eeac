"""Parts of the plan that golden files do not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.recorded.abilities import load_abilities

from duovisor.hypervisor.build import build_launch_plan, find_qemu_folder
from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.qemu.nics import mac_of
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator, NicSpec


@pytest.mark.parametrize(
    ("qemu", "folder"),
    [
        ("/usr/bin/qemu", "/usr/bin/qemu"),
        ("/usr/local/bin/qemu", "/usr/local"),
        ("/bin/qemu", "/usr/bin/qemu"),
        ("/opt/qemu/bin/qemu", "/opt/qemu"),
        ("/home/me/qemu/build/qemu", "/home/me/qemu/build"),
        ("/tmp/qemu", "/tmp"),
        ("/qemu", "/qemu"),
    ],
)
def test_a_sandbox_sees_of_a_qemu_what_is_its_own(qemu: str, folder: str) -> None:
    assert find_qemu_folder(Path(qemu)) == Path(folder)


def test_uefi_without_its_files_is_refused() -> None:
    spec = build_spec({"name": "vm", "firmware": "uefi"})
    paths = VmmPaths(qemu=Path("/usr/bin/qemu"), memory_file=Path("/m"))
    with pytest.raises(PlanError) as caught:
        build_launch_plan(spec, load_abilities("7.2"), Accelerator.TCG, paths)
    assert caught.value.remedy == "apt-get install ovmf"


def test_a_mac_is_the_vm_s_own_and_stays() -> None:
    assert mac_of("web", 0, NicSpec()) == "52:54:00:be:db:7c"
    macs = {mac_of(f"vm{n}", index, NicSpec()) for n in range(50) for index in range(8)}
    assert len(macs) == 400
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)
    assert mac_of("web", 0, NicSpec(mac="52:54:00:00:00:01")) == "52:54:00:00:00:01"
