"""Limits of a VM that runs: what systemd is told, a folder in the place of the scope, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_capabilities, build_vm

from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.resources.live import MemoryInUseError, change_limits, find_difference
from duovisor.controlling.resources.vm_group import VmGroup
from duovisor.spec.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.hardware.capabilities import HostCapabilities

UNIT = "duovisor-vm-0123abcd.scope"
# what systemd 252 makes of it: a period of 100 ms, and the default weight of what is empty
SYSTEMCTL = """#!/bin/bash
[ "$1 $2 $3" = "set-property --runtime {unit}" ] || {{ echo "what is $*" >&2; exit 1; }}
cd {folder}
for each in "${{@:4}}"; do
  value=${{each#*=}}
  case $each in
    CPUWeight=*) echo "${{value:-100}}" > cpu.weight ;;
    CPUQuota=) echo max 100000 > cpu.max ;;
    CPUQuota=*) echo "$((${{value%\\%}} * 1000)) 100000" > cpu.max ;;
    MemoryMax=*) echo $((${{value%M}} << 20)) > memory.max ;;
    *) exit 1 ;;
  esac
done
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / UNIT
    made.mkdir()
    (made / "memory.stat").write_text(f"anon {50 << 20}\nfile {900 << 20}\nshmem {150 << 20}\n")
    return made


@pytest.fixture
def host(tmp_path: Path, folder: Path) -> HostCapabilities:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(unit=UNIT, folder=folder))
    program.chmod(0o755)
    made = build_capabilities(tmp_path)
    tools = replace(made.tools, systemd_run=tmp_path / "systemd-run")
    return replace(made, groups_problem="", is_root=True, tools=tools)


async def test_they_are_in_force_and_can_go_again(host: HostCapabilities, folder: Path) -> None:
    limited = build_vm(cpu_limit=1.5, cpu_weight=50, memory_limit="1G")
    await change_limits(VmGroup(limited, folder), limited, host)
    read = {name: (folder / name).read_text().strip() for name in ("cpu.weight", "cpu.max", "memory.max")}
    assert read == {"cpu.weight": "50", "cpu.max": "150000 100000", "memory.max": str(1 << 30)}
    assert find_difference(folder, limited) == ""
    assert "not 2 processors" in find_difference(folder, build_vm(cpu_limit=2, cpu_weight=50))
    free = build_vm()
    assert find_difference(folder, free) == "the weight of its group is 50, not 100"
    await change_limits(VmGroup(free, folder), free, host)
    assert (folder / "cpu.weight").read_text() == "100\n"
    assert find_difference(folder, free) == ""


async def test_what_cannot_be_kept_is_refused(host: HostCapabilities, folder: Path) -> None:
    limited = build_vm(cpu_limit=1)
    group = VmGroup(limited, None, problem="it was started without a group")
    with pytest.raises(HostLacksError, match="cannot keep: it was started without a group"):
        await change_limits(group, limited, host)
    with pytest.raises(HostLacksError, match="systemd refuses"):
        await change_limits(VmGroup(limited, folder.parent / "other.scope"), limited, host)
    assert not (folder / "cpu.max").exists()
    lazy = host.tools.systemd_run
    assert lazy is not None
    lazy.with_name("systemctl").write_text("#!/bin/sh\n")
    with pytest.raises(HostLacksError, match="the limit of its group is unknown"):
        await change_limits(VmGroup(limited, folder), limited, host)


async def test_memory_that_is_in_use_is_not_taken_away(host: HostCapabilities, folder: Path) -> None:
    limited = build_vm(memory_mib=128, memory_limit="192M")
    with pytest.raises(MemoryInUseError, match="uses 200 MiB"):  # without the page cache
        await change_limits(VmGroup(limited, folder), limited, host)
    with pytest.raises(SpecError, match="need at least 576"):
        build_vm(memory_mib=512, memory_limit="512M")
