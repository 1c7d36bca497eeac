"""Both designs under real KVM, on a host that is itself a guest whose processor's SVM is QEMU's TCG.

One outer guest boots, runs every step (``in_guest/steps.py``) and powers off; each test below judges one
part of what it reported. Times measured there mean nothing and none is judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling.plugging.memory import UNSEEN
from duovisor.sandbox import UID_BASE
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from tests.nested.outer_guest import Reports

pytestmark = [pytest.mark.vm, pytest.mark.nested]


def find_process(reports: Reports, design: Design, role: str) -> dict[str, Any]:
    """The one process with this role in a VM's anatomy."""
    processes = reports.find("anatomy", design)["anatomy"]["processes"]
    found: list[dict[str, Any]] = [process for process in processes if process["role"] == role]
    assert len(found) == 1, processes
    return found[0]


def test_host_check_finds_kvm_by_running_a_guest(reports: Reports) -> None:
    check = reports.find("host-check")
    assert check["exit"] == 0, check
    assert check["document"]["accelerator"] == "kvm"
    assert check["document"]["accelerator_reason"].startswith("KVM ran a guest at ")


@pytest.mark.parametrize("design", Design)
def test_host_check_has_nothing_to_complain_of(reports: Reports, design: Design) -> None:
    verdict = reports.find("host-check")["document"]["designs"][design]
    assert verdict["verdict"] == "ok", verdict


def test_host_show_names_the_extension(reports: Reports) -> None:
    show = reports.find("host-show")
    assert show["exit"] == 0, show
    assert show["document"]["processors"]["extension"] == "svm"
    assert show["document"]["capabilities"]["kvm"]["state"] == "works"


@pytest.mark.parametrize("design", Design)
def test_guest_boots_on_kvm(reports: Reports, design: Design) -> None:
    booted = reports.find("booted", design)["guest"]
    assert booted["cpus"] == 1
    assert {disk["serial"] for disk in booted["disks"]} == {"scratch", "duovisor-tools"}
    assert reports.find("anatomy", design)["anatomy"]["accelerator"] == "kvm"
    told = reports.find("who-runs-us", design)
    assert (told["exit"], told["output"]) == (0, "Hypervisor detected: KVM\n")


@pytest.mark.parametrize("design", Design)
def test_guest_has_an_address(reports: Reports, design: Design) -> None:
    address = reports.find("address", design)
    assert (address["exit"], address["output"]) == (0, "inet 10.0.2.15\n")


@pytest.mark.parametrize("design", Design)
def test_memory_comes_to_the_guest(reports: Reports, design: Design) -> None:
    memory = reports.find("memory", design)
    assert memory["said"] == UNSEEN
    assert int(memory["has"]) == int(memory["had"]) + (128 << 10)


@pytest.mark.parametrize("design", Design)
def test_storage_verifies(reports: Reports, design: Design) -> None:
    assert reports.find("verify", design)["verify"] == "ok"


@pytest.mark.parametrize("design", Design)
def test_card_on_a_bridge_reaches_the_host(reports: Reports, design: Design) -> None:
    bridged = reports.find("bridged", design)
    assert bridged["exit"] == 0, bridged
    assert " 0% packet loss" in bridged["output"]


@pytest.mark.parametrize("design", Design)
def test_card_on_a_bridge_has_a_vector_for_each_queue(reports: Reports, design: Design) -> None:
    lines = [line.split() for line in reports.find("interrupts", design)["lines"]]
    counts = {line[-1].partition("-")[2]: int(line[1]) for line in lines}
    assert counts.keys() == {"config", "input.0", "output.0"}, lines
    assert all(any(word.startswith("PCI-MSI") for word in line) for line in lines), lines
    assert counts["input.0"] > 0


def test_stream_of_a_monolithic_card_is_whole(reports: Reports) -> None:
    assert reports.find("stream", Design.MONOLITHIC)["whole"]


def test_stream_survives_its_driver(reports: Reports) -> None:
    stream = reports.find("stream", Design.MICROKERNELIZED)
    assert (stream["whole"], len(stream["killed"]), stream["deaths"]) == (True, 1, 1), stream


def test_a_card_on_a_vlan_is_on_no_other(reports: Reports) -> None:
    """Here, because this guest's kernel is a distribution's, whose bridges know VLANs."""
    (port,) = reports.find("vlan")["ports"]
    assert [(each["vlan"], set(each["flags"])) for each in port["vlans"]] == [
        (7, {"PVID", "Egress Untagged"})
    ]


@pytest.mark.parametrize("design", Design)
def test_guest_shuts_down_by_the_power_button(reports: Reports, design: Design) -> None:
    shutdown = reports.find("shutdown", design)
    assert shutdown["obeyed"]
    assert shutdown["history"] == ["defined", "starting", "running", "stopping", "stopped"]


def test_monolithic_vmm_holds_the_images(reports: Reports) -> None:
    vmm = find_process(reports, Design.MONOLITHIC, "vmm")
    assert [access for access in vmm["host_access"] if access.startswith("image ")]
    assert "device /dev/kvm" in vmm["host_access"]
    held = reports.find("vmm", Design.MONOLITHIC)["files"]
    assert [file for file in held if file.endswith(".raw")]


def test_microkernelized_vmm_holds_kvm_and_no_image(reports: Reports) -> None:
    vmm = find_process(reports, Design.MICROKERNELIZED, "vmm")
    assert vmm["host_access"] == ["device /dev/kvm", "guest memory"]
    held = reports.find("vmm", Design.MICROKERNELIZED)["files"]
    assert "anon_inode:kvm-vcpu:0" in held
    assert not [file for file in held if file.endswith(".raw") or "tun" in file], held


def test_microkernelized_vmm_is_let_to_kvm_by_its_group(reports: Reports) -> None:
    vmm = reports.find("vmm", Design.MICROKERNELIZED)
    assert (vmm["kvm_mode"], vmm["groups"]) == ("660", [vmm["kvm_gid"]])
    assert vmm["kvm_gid"] != 0
    assert vmm["uid"] >= UID_BASE
    assert "no capabilities" in find_process(reports, Design.MICROKERNELIZED, "vmm")["confinement"]


def test_images_are_in_the_driver_partitions(reports: Reports) -> None:
    processes = reports.find("anatomy", Design.MICROKERNELIZED)["anatomy"]["processes"]
    drivers = [process for process in processes if process["role"] == "storage driver"]
    assert len(drivers) == 4, processes  # the scratch and the tools disk's, each with its spare
    for driver in drivers:
        assert [access for access in driver["host_access"] if access.startswith("image ")], driver
        assert "device /dev/kvm" not in driver["host_access"]


def test_nothing_is_left_on_the_host(reports: Reports) -> None:
    leftovers = reports.find("leftovers")
    assert [leftovers[kind] for kind in ("processes", "mounts", "files", "ports")] == [[]] * 4
    assert reports.find("done")
