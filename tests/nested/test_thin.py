"""A VM of four processors on the thin VMM, under real KVM, with a distribution's unmodified kernel.

The same outer guest as in ``test_nested_kvm`` does it all once (``in_guest/thin_steps.py``); each test judges
a part of what it reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duovisor.sandbox import UID_BASE

if TYPE_CHECKING:
    from tests.nested.outer_guest import Reports

pytestmark = [pytest.mark.vm, pytest.mark.nested]


def find(reports: Reports, step: str) -> dict[str, Any]:
    """The report of a step; where there is none, why."""
    failed = [line["traceback"] for line in reports.lines if line["step"] == "thin-failed"]
    assert not failed, failed[0]
    return reports.find(step)


def test_guest_boots_on_the_thin_vmm(reports: Reports) -> None:
    booted = find(reports, "thin-booted")
    assert booted["kind"] == "thin"
    assert booted["guest"]["cpus"] == 4
    assert {disk["serial"] for disk in booted["guest"]["disks"]} == {"scratch", "duovisor-tools"}


def test_vmm_holds_kvm_and_guest_memory_alone(reports: Reports) -> None:
    processes = find(reports, "thin-anatomy")["anatomy"]["processes"]
    (vmm,) = [process for process in processes if process["role"] == "vmm"]
    assert vmm["host_access"] == ["device /dev/kvm", "guest memory"]
    assert {"no capabilities", "seccomp", "no new privileges"} <= set(vmm["confinement"])
    assert int(vmm["confinement"][0].removeprefix("uid ")) >= UID_BASE
    consoles = [process for process in processes if process["role"] == "console driver"]
    assert len(consoles) == 2, processes  # one serves, one is its spare


def test_reading_does_not_enter_the_vmm(reports: Reports) -> None:
    counted = find(reports, "thin-exits")
    assert counted["read"]["exit"] == 0, counted
    exits = {kind: number for kind, number in counted["exits"].items() if kind != "other"}
    assert sum(exits.values()) <= counted["reads"] / 1000, exits


def test_storage_verifies_though_its_driver_is_killed(reports: Reports) -> None:
    assert find(reports, "thin-verify")["verify"] == "ok"


def test_guest_goes_on_in_a_new_vmm(reports: Reports) -> None:
    moved = find(reports, "thin-moved")
    assert moved["before"] == moved["after"]
    assert moved["report"]["old_pid"] != moved["report"]["new_pid"]
    assert find(reports, "thin-verify-moved")["verify"] == "ok"


def test_a_reset_boots_it_again(reports: Reports) -> None:
    assert find(reports, "thin-reset")["after"]["output"] != find(reports, "thin-moved")["after"]["output"]


def test_guest_shuts_down_by_the_power_button(reports: Reports) -> None:
    shutdown = find(reports, "thin-shutdown")
    assert shutdown["obeyed"], shutdown
    assert shutdown["history"][-2:] == ["stopping", "stopped"]
