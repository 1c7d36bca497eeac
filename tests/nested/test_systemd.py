"""duovisord as a systemd unit, and the groups in which its VMs are limited, on a real systemd and cgroup v2.

The same outer guest as in ``test_nested_kvm`` does it all once; each test judges a part of what it reported.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.nested.in_guest.service_steps import SPEC

from duovisor.controlling.resources.limits import (
    build_helper_group_limits,
    build_vm_group_limits,
    build_vmm_group_limits,
)
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from tests.nested.outer_guest import Reports

pytestmark = [pytest.mark.vm, pytest.mark.nested]

GROUP = re.compile(r"/sys/fs/cgroup/duovisor\.slice/duovisor-inner-[0-9a-f]{8}\.scope/(vmm|disk0|nic0)-\d+")


def limited(vm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The VM's processes by role and number, without the service."""
    return {name: group for name, group in vm["groups"].items() if not name.startswith("manager ")}


def test_the_unit_is_sound_and_the_service_says_when_it_is_ready(reports: Reports) -> None:
    assert reports.find("unit-installed")["verify"] == {"exit": 0, "output": ""}
    started = reports.find("unit-started")
    assert started["start"]["exit"] == 0, started
    assert (started["unit"]["ActiveState"], started["unit"]["SubState"]) == ("active", "running")


def test_each_process_of_a_vm_is_in_its_group_with_its_limits(reports: Reports) -> None:
    started = reports.find("vm-started")
    assert started["start"]["exit"] == 0, started
    spec = build_spec(SPEC)
    whole = list(build_vm_group_limits(spec))
    processes = limited(started["vm"])
    assert sorted({name.split(" ")[0] for name in processes}) == ["network", "storage", "vmm"]
    for name, each in processes.items():
        assert GROUP.fullmatch(each["group"]), each
        wanted = build_vmm_group_limits if name.startswith("vmm ") else build_helper_group_limits
        assert each["limits"] == list(wanted(spec)), name
        assert each["scope"] == whole
        assert [words for words in each["confinement"] if words.startswith("cgroup of ")]
    assert len(started["vm"]["mounts"]) == 1  # the guest's memory, in the host's own mount namespace


@pytest.mark.parametrize("step", ["unit-restarted", "unit-killed"])
def test_a_vm_and_its_limits_outlive_the_service(reports: Reports, step: str) -> None:
    before, after = reports.find("vm-started")["vm"], reports.find(step)
    assert (after["unit"]["ActiveState"], after["unit"]["SubState"]) == ("active", "running"), after
    assert len(limited(before)) == 4  # VMM, driver and spare, network helper
    assert limited(after["vm"]) == limited(before)
    assert after["vm"]["mounts"] == before["mounts"]


def test_a_restarted_service_adopts_its_vm(reports: Reports) -> None:
    restarted = reports.find("unit-restarted")
    assert restarted["restart"] == {"exit": 0, "output": ""}
    assert restarted["found"]["recovery"]["adopted"] == ["inner"]
    assert reports.find("unit-killed")["back"]


def test_host_check_tells_of_groups(reports: Reports) -> None:
    for verdict in reports.find("check")["check"]["designs"].values():
        (limits,) = (finding for finding in verdict["findings"] if finding["subject"] == "limits")
        assert limits["seen"] == "each process, and each VM in a systemd scope"


def test_limits_change_under_the_guest_and_stay(reports: Reports) -> None:
    live = reports.find("limited-live")
    assert (live["limited"]["exit"], live["freed"]["exit"]) == (0, 0), live
    assert (
        live["limited"]["output"] == "inner: weight 50, at most 0.5 processors, at most 3072 MiB of memory\n"
    )
    assert live["found"] == ["50000 100000", "50", str(3 << 30)]
    whole = build_vm_group_limits(build_spec(SPEC)).memory_mib
    assert live["afterwards"] == ["max 100000", "100", str(whole << 20)]


def test_a_group_ends_with_its_vm(reports: Reports) -> None:
    stopped = reports.find("vm-stopped")
    assert stopped["stop"]["exit"] == 0, stopped
    assert (stopped["gone"], stopped["scopes"]) == (True, [])
    assert reports.find("unit-stopped")["unit"]["Result"] == "success"


def test_who_takes_too_much_is_stopped_alone(reports: Reports) -> None:
    limits = reports.find("limits")
    assert limits["problem"] == ""
    assert limits["ends"] == {
        "memory": -signal.SIGKILL,  # by the kernel: no memory left in its group
        "forks": 25,  # tens of processes: it may have 256
    }
    assert limits["neighbour_lives"]
