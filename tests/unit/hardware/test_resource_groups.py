"""Whether a host lets us limit processes in groups, on roots that lack one thing after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from duovisor.hardware.resource_groups import find_groups_problem

PROGRAM = Path("/usr/bin/systemd-run")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "run/user/1000/systemd").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    return tmp_path


def test_root_on_a_host_with_systemd_can(root: Path) -> None:
    assert find_groups_problem(root, PROGRAM, {}, is_root=True) == ""


def test_another_user_can_with_a_systemd_of_their_own(root: Path) -> None:
    own = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    assert find_groups_problem(root, PROGRAM, own, is_root=False) == ""
    for environ in ({}, {"XDG_RUNTIME_DIR": "/run/user/1001"}):
        problem = find_groups_problem(root, PROGRAM, environ, is_root=False)
        assert problem == "this user has no systemd of their own"


def test_what_is_missing_is_named(root: Path) -> None:
    assert find_groups_problem(root, None, {}, is_root=True) == "systemd-run is not installed"
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("hugetlb pids\n")
    assert find_groups_problem(root, PROGRAM, {}, is_root=True) == (
        "cgroup v2 has no controller for memory here"
    )
    (root / "run/systemd/system").rmdir()
    assert find_groups_problem(root, PROGRAM, {}, is_root=True) == "this host does not run systemd"
