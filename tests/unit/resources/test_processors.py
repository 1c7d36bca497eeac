"""Processor limits: kept by groups or refused, and reservations that the host has processors for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_capabilities, build_vm

from duovisor.controlling.errors import HostLacksError, ProcessorsTakenError
from duovisor.controlling.resources.limits import GroupLimits
from duovisor.controlling.resources.processors import check_group_limits, check_reservation
from duovisor.controlling.resources.scope import build_scope_argv
from duovisor.controlling.resources.vm_group import open_vm_group
from duovisor.spec.errors import SpecError
from duovisor.spec.limits import ProcessorShare

if TYPE_CHECKING:
    from duovisor.hardware.capabilities import HostCapabilities

LIMITS = GroupLimits(memory_mib=100, processes=10)


@pytest.fixture
def capabilities(tmp_path: Path) -> HostCapabilities:
    """A host with groups, two processors, and no systemd that works."""
    made = build_capabilities(tmp_path)
    return replace(made, groups_problem="", tools=replace(made.tools, systemd_run=Path("/bin/false")))


def give_controllers(root: Path, controllers: str) -> Path:
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text(controllers)
    return root


def test_what_is_asked_of_the_host() -> None:
    assert build_vm().processor_share is None
    assert build_vm(cpu_limit=1.5).processor_share == ProcessorShare(None, 1.5)
    assert build_vm(cpu_weight=20).processor_share == ProcessorShare(20, None)
    assert build_vm(cpu_reservation=2).processor_share == ProcessorShare(200, None)
    assert build_vm(cpu_reservation=0.5, cpu_weight=7).processor_share == ProcessorShare(7, None)
    with pytest.raises(SpecError, match="more than cpu_limit"):
        build_vm(cpu_limit=1, cpu_reservation=2)


def test_a_scope_has_them() -> None:
    def options(share: ProcessorShare | None) -> set[str]:
        argv = build_scope_argv(Path("systemd-run"), "vm", LIMITS, as_root=True, share=share)
        return {word for word in argv if "CPU" in word}

    assert options(None) == set()
    assert options(ProcessorShare(300, 1.5)) == {"--property=CPUWeight=300", "--property=CPUQuota=150%"}
    assert options(ProcessorShare(None, 0.25)) == {"--property=CPUQuota=25%"}


def test_a_host_that_cannot_keep_them_says_so(capabilities: HostCapabilities, tmp_path: Path) -> None:
    root = give_controllers(tmp_path / "whole", "cpuset cpu io memory pids")
    asked = build_vm(cpu_limit=2)
    check_group_limits(asked, capabilities, root)
    check_group_limits(build_vm(), replace(capabilities, groups_problem="there is no systemd"), root)
    with pytest.raises(HostLacksError, match="there is no systemd"):
        check_group_limits(asked, replace(capabilities, groups_problem="there is no systemd"), root)
    with pytest.raises(HostLacksError, match="no controller for processors"):
        check_group_limits(asked, capabilities, give_controllers(tmp_path / "half", "cpuset memory pids"))
    with pytest.raises(HostLacksError, match="this host has 2 processors"):
        check_group_limits(build_vm(cpu_limit=2.5), capabilities, root)


async def test_a_scope_that_cannot_be_made_is_no_reason_to_forget_them(
    capabilities: HostCapabilities, tmp_path: Path
) -> None:
    assert (await open_vm_group(build_vm(), capabilities, tmp_path)).folder is None
    with pytest.raises(HostLacksError, match="cannot keep"):
        await open_vm_group(build_vm(cpu_weight=50), capabilities, tmp_path)


def test_reservations_do_not_exceed_the_host() -> None:
    wanted = build_vm("c", cpu_reservation=1)
    others = {"a": build_vm("a", cpu_reservation=0.5), "b": build_vm("b")}
    check_reservation(wanted, others, 2)
    check_reservation(build_vm("c"), others, 0)
    with pytest.raises(ProcessorsTakenError) as caught:
        check_reservation(wanted, others | {"d": build_vm("d", cpu_reservation=0.75)}, 2)
    assert "only 0.75 are left" in caught.value.message
    assert "(a, d)" in caught.value.remedy
    check_reservation(wanted, {"a": build_vm("a", cpu_reservation=1)}, 2)  # to the last one
