"""The group of a VM, on folders that stand for a cgroup tree."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from tests.unit.vms.fake_host import build_capabilities, build_vm

from duovisor.controlling.machine_devices import plan_nic
from duovisor.controlling.resources import group_folder
from duovisor.controlling.resources.limits import (
    build_helper_group_limits,
    build_vm_group_limits,
    build_vmm_group_limits,
)
from duovisor.controlling.resources.vm_group import VmGroup, find_vm_group, open_vm_group
from duovisor.process import start

SPEC = build_vm(memory_mib=256, disks=[{"path": "/disk"}], nics=[{}])


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_vm_may_use_what_its_processes_may() -> None:
    vmm, helper = build_vmm_group_limits(SPEC), build_helper_group_limits(SPEC)
    whole = build_vm_group_limits(SPEC)
    assert vmm == (256 + 2048 + 16, 512)
    assert helper == (256 + 512, 256)
    assert whole.memory_mib == vmm.memory_mib + 6 * (helper.memory_mib - 256)
    assert whole.processes == vmm.processes + 6 * helper.processes


def test_what_may_come_has_room_from_the_start() -> None:
    roomy, large = (SPEC.model_copy(update=each) for each in ({"memory_max_mib": 1024}, {"memory_mib": 1024}))
    for build in (build_vmm_group_limits, build_helper_group_limits, build_vm_group_limits):
        assert build(roomy) == build(large) != build(SPEC)
    assert plan_nic(roomy, 0, {}).limits == plan_nic(large, 0, {}).limits


def test_each_process_has_a_leaf_with_its_limits(tmp_path: Path) -> None:
    folder = tmp_path / "scope"
    folder.mkdir()
    driver = start(("sleep", "60"), role="driver", log=tmp_path / "log")
    group = VmGroup(SPEC, folder)
    group.place("", 4_100_001)
    group.place("disk0", driver.pid)
    driver.kill_now()
    assert group.problem == ""
    assert read(folder / f"disk0-{driver.pid}") == {
        "cgroup.procs": str(driver.pid), "memory.max": str(768 << 20), "pids.max": "256",
    }  # fmt: skip
    assert not (folder / "vmm-4100001").exists()  # there is no such process


def test_the_first_process_relieves_the_holder_and_turns_the_controllers_on(tmp_path: Path) -> None:
    holder = start(("sleep", "60"), role="scope holder", log=tmp_path / "log")
    folder = tmp_path / "scope"
    folder.mkdir()
    group = VmGroup(SPEC, folder, holder=holder)
    group.place("", os.getpid())
    assert holder.has_ended
    assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_holder_that_nobody_relieved_ends_with_the_group(tmp_path: Path) -> None:
    holder = start(("sleep", "60"), role="scope holder", log=tmp_path / "log")
    VmGroup(SPEC, tmp_path, holder=holder).close()
    assert holder.has_ended


def test_what_went_wrong_is_told_and_nothing_raised(tmp_path: Path) -> None:
    group = VmGroup(SPEC, tmp_path / "gone")
    group.place("disk0", os.getpid())
    assert group.problem.startswith("disk0 could not be put into its group: No such file or directory")


def test_leaves_of_processes_that_have_ended_are_removed(tmp_path: Path) -> None:
    (tmp_path / "disk0-17").mkdir()
    VmGroup(SPEC, tmp_path).place("disk0", os.getpid())
    assert not (tmp_path / "disk0-17").exists()


async def test_a_host_without_groups_says_why(tmp_path: Path) -> None:
    host = replace(build_capabilities(tmp_path), groups_problem="this host does not run systemd")
    group = await open_vm_group(SPEC, host, tmp_path)
    assert (group.folder, group.problem) == (None, "this host does not run systemd")
    group.place("", os.getpid())
    group.close()


async def test_a_scope_that_cannot_be_had_leaves_the_vm_without_a_group(tmp_path: Path) -> None:
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\necho Access denied\nexit 1\n")
    program.chmod(0o755)
    host = build_capabilities(tmp_path)
    host = replace(host, tools=replace(host.tools, systemd_run=program))
    group = await open_vm_group(SPEC, host, tmp_path)
    assert (group.folder, group.problem) == (None, "Access denied")


def test_a_vm_without_a_group_is_adopted_without_one() -> None:
    group = find_vm_group(SPEC, os.getpid())
    assert (group.folder, group.problem) == (None, "it was started without a group")


def test_a_process_s_group_is_its_folder_in_the_unified_tree(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("12:pids:/old\n0::/duovisor.slice/duovisor-a.scope/vmm-7\n")
    mount = Path("/sys/fs/cgroup")
    assert group_folder.find_group(7, tmp_path) == mount / "duovisor.slice/duovisor-a.scope/vmm-7"
    (tmp_path / "7/cgroup").write_text("12:pids:/old\n")
    assert group_folder.find_group(7, tmp_path) is None
    shutil.rmtree(tmp_path / "7")
    assert group_folder.find_group(7, tmp_path) is None


def test_limits_are_read_as_they_are_set(tmp_path: Path) -> None:
    group_folder.write_limits(tmp_path, build_helper_group_limits(SPEC))
    assert group_folder.read_limits(tmp_path) == (768, 256)
    (tmp_path / "memory.max").write_text("max\n")
    assert group_folder.read_limits(tmp_path) is None
