"""A VM of the service on the thin VMM, under real KVM, with a distribution's unmodified kernel.

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

MINIMUM_IOS = 100
ALLOWED_AT_ONCE = 0.2  # of what a limit is measured with: a tenth of a second's worth, and the rounding


def find(reports: Reports, step: str) -> dict[str, Any]:
    """The report of a step; where there is none, why."""
    failed = [line["traceback"] for line in reports.lines if line["step"] == "thin-failed"]
    assert not failed, failed[0]
    return reports.find(step)


def list_pids(anatomy: dict[str, Any]) -> set[int]:
    """The VM's processes, without the service."""
    return {process["pid"] for process in anatomy["processes"] if process["role"] != "manager"}


def assert_replaced(killed: dict[str, Any]) -> None:
    """A driver was killed: its spare serves, and has a spare."""
    assert [each["duty"] for each in killed["after"]] == ["active", "spare"], killed
    assert killed["before"]["pid"] not in [each["pid"] for each in killed["after"]]
    assert killed["after"][0]["deaths"] == killed["before"]["deaths"] + 1


def test_guest_boots_on_the_thin_vmm_that_nobody_asked_for(reports: Reports) -> None:
    booted = find(reports, "thin-booted")
    assert (booted["anatomy"]["vmm"], booted["anatomy"]["vmm_reason"]) == ("thin", "it can run this VM")
    assert booted["guest"]["cpus"] == 2
    assert {disk["serial"] for disk in booted["guest"]["disks"]} == {"scratch", "duovisor-tools"}
    assert booted["says"] == "Hypervisor detected: KVM\nttyS0 hvc0\n"  # the last one is /dev/console


def test_its_processors_have_what_their_model_has(reports: Reports) -> None:
    flags = set(find(reports, "thin-processor")["flags"])
    # not avx2: on an emulated processor Linux finds XSAVE inconsistent, under QEMU as well, and does without
    assert {"movbe", "abm", "bmi1", "bmi2"} <= flags
    assert flags.isdisjoint({"umip", "pku"})  # which KVM offers here


@pytest.mark.parametrize("step", ["thin-booted", "thin-moved"])
def test_vmm_holds_kvm_and_guest_memory_alone(reports: Reports, step: str) -> None:
    processes = find(reports, step)["anatomy"]["processes"]
    (vmm,) = [process for process in processes if process["role"] == "vmm"]
    assert vmm["host_access"] == ["device /dev/kvm", "guest memory"]
    assert {"no capabilities", "seccomp", "no new privileges"} <= set(vmm["confinement"])
    assert int(vmm["confinement"][0].removeprefix("uid ")) >= UID_BASE
    consoles = [process for process in processes if process["role"] == "console driver"]
    assert len(consoles) == 2, processes  # one serves, one is its spare


def test_streams_are_whole_though_the_cards_drivers_are_killed(reports: Reports) -> None:
    stream = find(reports, "thin-stream")
    assert " 0% packet loss" in stream["pinged"]
    assert (stream["whole"], len(stream["killed"])) == (True, 2), stream
    assert stream["after"][0]["deaths"] == 2


def test_limits_hold_under_the_cards_next_driver_too(reports: Reports) -> None:
    limited = find(reports, "thin-limited")
    assert_replaced(limited["killed"])
    assert limited["received"] == limited["sent"]
    for took, least in (("to_guest_s", "least_s"), ("from_guest_s", "least_s"), ("reads_s", "reads_least_s")):
        # a slow machine takes longer, and nothing takes less
        assert limited[took] > limited[least] * (1 - ALLOWED_AT_ONCE), (took, limited)


@pytest.mark.parametrize("step", ["thin-storage", "thin-storage-moved", "thin-console"])
def test_killed_drivers_are_replaced(reports: Reports, step: str) -> None:
    assert_replaced(find(reports, step)["killed"])


def test_a_driver_is_updated(reports: Reports) -> None:
    operation = find(reports, "thin-updated-driver")["operation"]
    assert (operation["state"], operation["error"]) == ("done", None)


def test_storage_verifies_through_all_of_it(reports: Reports) -> None:
    load = find(reports, "thin-load")
    assert (load["error"], load["said"].strip()) == (0, "fio: terminating on signal 15")
    assert min(load["ios"].values()) > MINIMUM_IOS, load


def test_guest_is_paused_and_goes_on(reports: Reports) -> None:
    paused = find(reports, "thin-paused")
    assert (paused["state"], paused["says"]) == ("paused", "on\n")


def test_reading_does_not_enter_the_vmm(reports: Reports) -> None:
    counted = find(reports, "thin-exits")
    assert sum(counted["exits"].values()) <= counted["reads"] / 1000, counted


def test_a_second_service_adopts_the_vm(reports: Reports) -> None:
    adopted = find(reports, "thin-adopted")
    assert adopted["found"]["adopted"] == ["inner-thin"]
    assert list_pids(adopted["before"]) == list_pids(adopted["after"])
    assert adopted["after"]["vmm"] == "thin"
    assert adopted["says"] == "on\n"


def test_guest_goes_on_in_a_new_vmm(reports: Reports) -> None:
    moved = find(reports, "thin-moved")
    assert moved["before"] == moved["after"]
    assert moved["operation"]["error"] is None
    result = moved["operation"]["result"]
    assert result["vmm"] == "thin"
    assert result["new_pid"] in list_pids(moved["anatomy"])
    assert result["old_pid"] not in list_pids(moved["anatomy"])


@pytest.mark.parametrize(
    ("action", "code"),
    [("switch", "move-refused"), ("attach-nic", "plug-refused"), ("detach-disk", "plug-refused")],
)
def test_its_design_and_devices_stay(reports: Reports, action: str, code: str) -> None:
    answer = find(reports, "thin-refused")["answers"][action]
    remedy = "stop it, and duovisor vm edit inner-thin --set vmm=qemu"
    assert (answer["code"], answer["remedy"]) == (code, remedy)


def test_a_reset_boots_it_again(reports: Reports) -> None:
    reset = find(reports, "thin-reset")
    assert reset["before"] != reset["after"]


def test_a_snapshot_is_taken_under_load(reports: Reports) -> None:
    taken = find(reports, "thin-snapshot")
    assert taken["operation"]["error"] is None
    assert taken["operation"]["message"].startswith("paused ")
    assert taken["says"] == "on\n"


def test_the_guest_goes_on_from_its_snapshot_with_the_disk_that_it_had(reports: Reports) -> None:
    restored = find(reports, "thin-restored")
    assert restored["operation"]["error"] is None
    assert restored["before"] == restored["after"]  # it was reset since, and is not any more
    assert (restored["error"], restored["said"].strip()) == (0, "fio: terminating on signal 15")
    assert min(restored["ios"].values()) > MINIMUM_IOS, restored


def test_guest_shuts_down_by_the_power_button(reports: Reports) -> None:
    operation = find(reports, "thin-shutdown")["operation"]
    assert (operation["message"], operation["error"]) == ("stopped", None)


def test_nothing_is_left_of_it(reports: Reports) -> None:
    assert find(reports, "thin-leftovers")["found"] == []
