"""Parts of the plan that golden files do not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.recorded.abilities import load_abilities

from duovisor.hypervisor.build import build_launch_plan, find_qemu_folder
from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.memory import list_module_files
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.qemu.nics import mac_of
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator, Design, NicSpec


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


@pytest.mark.parametrize("design", list(Design))
def test_memory_that_came_is_where_it_was_in_a_successor(design: Design) -> None:
    spec = build_spec({"name": "vm", "design": design, "memory": "1G", "memory_max": "4G"})
    files = list_module_files(Path("/m"))
    paths = VmmPaths(Path("/usr/bin/qemu"), Path("/m"), module_files=files, modules_mib=(128, 256))
    plan = build_launch_plan(spec, load_abilities("7.2"), Accelerator.TCG, paths)
    first, second = ("/memory-0", "/memory-1") if design is Design.MICROKERNELIZED else ("/m+0", "/m+1")
    words = list(plan.argv)
    at = words.index("-m")
    kind, share = '"qom-type": "memory-backend-file"', '"share": true'
    assert words[at + 1] == "640M,slots=8,maxmem=4096M"
    assert words[at + 4 : at + 12] == [
        "-object", f'{{{kind}, "id": "dimm0-ram", "size": 134217728, "mem-path": "{first}", {share}}}',
        "-device", "pc-dimm,id=dimm0,memdev=dimm0-ram,slot=0",
        "-object", f'{{{kind}, "id": "dimm1-ram", "size": 268435456, "mem-path": "{second}", {share}}}',
        "-device", "pc-dimm,id=dimm1,memdev=dimm1-ram,slot=1",
    ]  # fmt: skip
    shown = dict(plan.sandbox.writable) if plan.sandbox else {}
    assert [shown.get(file) for file in files[:2]] == ([first, second] if shown else [None, None])
    assert plan.modules_mib == (128, 256)
