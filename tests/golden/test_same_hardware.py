"""A guest sees the same machine in both designs: their command lines differ only where the drivers are."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest
from tests.golden.cases import CASES, Case, build_case_spec
from tests.golden.test_plans import build_plan
from tests.recorded.abilities import VERSIONS

from duovisor.spec.vm import MAX_DEVICES, MAX_DISKS, MAX_NICS, Accelerator, Design

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from duovisor.hypervisor.plan import LaunchPlan

# where a device's back end is: nothing of it reaches the guest (queue_reset=off takes away a feature that
# vhost-user-blk never offers; a disk's serial is told by whoever serves it)
BACK_END = {"driver", "drive", "iothread", "chardev", "queue_reset", "serial", "rng"}
SAME_MODEL = {"virtio-blk-pci": "vhost-user-blk-pci", "virtio-rng-pci": "vhost-user-rng-pci"}
MODERN_ONLY = {"vhost-user-rng-pci"}  # has no property that says so
# options that say where the back ends and the VMM's own files are
MAY_DIFFER = {"-object", "-blockdev", "-chardev", "-netdev", "-device", "-kernel", "-initrd"}
each_case = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.refused_inside], ids=lambda case: case.name
)
DISKS_AND_CARDS = (
    *(f'[[disks]]\npath = "/srv/{n}.raw"' for n in range(4)),
    *['[[nics]]\nnetwork = "user"'] * 3,
)
DESIGNS = (Design.MONOLITHIC, Design.MICROKERNELIZED)


def pair_options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with its value; a flag has none."""
    pairs = itertools.pairwise([*argv, ""])
    return [(name, "" if value.startswith("-") else value) for name, value in pairs if name.startswith("-")]


def find_values(argv: Sequence[str], option: str) -> list[str]:
    return [value for name, value in pair_options(argv) if name == option]


def read_devices(plan: LaunchPlan) -> dict[str, dict[str, str]]:
    """The properties of each ``-device``, by its id or, for a port, its name."""
    devices = {}
    for value in find_values(plan.argv, "-device"):
        driver, *properties = value.split(",")
        device = {"driver": driver, **dict(text.split("=", 1) for text in properties)}
        devices[device.get("id") or device["name"]] = device
    return devices


def build_plans(case: Case, folder: Path, version: str, accelerator: Accelerator) -> list[LaunchPlan]:
    return [build_plan(build_case_spec(case, folder, each), version, accelerator) for each in DESIGNS]


@each_case
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("accelerator", [Accelerator.KVM, Accelerator.TCG])
def test_devices_differ_only_in_their_back_ends(
    case: Case, version: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    inside, outside = map(read_devices, build_plans(case, tmp_path, version, accelerator))
    assert list(inside) == list(outside)
    for name, device in inside.items():
        twin = outside[name]
        if twin["driver"] in MODERN_ONLY:
            twin["disable-legacy"] = "on"
        assert SAME_MODEL.get(device["driver"], device["driver"]) == twin["driver"]
        seen = [{k: v for k, v in each.items() if k not in BACK_END} for each in (device, twin)]
        assert seen[0] == seen[1]
        if name.startswith("disk"):
            assert {"addr", "num-queues", "queue-size", "bootindex", "disable-legacy"} <= seen[0].keys()
        if name.startswith("nic"):
            assert {"addr", "mac", "disable-legacy"} <= seen[0].keys()


@each_case
def test_other_options_are_equal(case: Case, tmp_path: Path) -> None:
    inside, outside = (
        [pair for pair in pair_options(plan.argv) if pair[0] not in MAY_DIFFER]
        for plan in build_plans(case, tmp_path, "7.2", Accelerator.KVM)
    )
    assert inside == outside
    assert {"-machine", "-cpu", "-smp", "-m", "-accel", "-rtc", "-serial", "-mon"} <= dict(inside).keys()


@each_case
def test_memory_is_shared_and_in_a_file_in_both(case: Case, tmp_path: Path) -> None:
    for plan in build_plans(case, tmp_path, "7.2", Accelerator.TCG):
        backends = [json.loads(value) for value in find_values(plan.argv, "-object")]
        memory = [each for each in backends if each["id"] == "ram"]
        assert [(each["qom-type"], each["share"]) for each in memory] == [("memory-backend-file", True)]
        assert memory[0]["size"] == plan.memory_mib << 20


@each_case
def test_a_microkernelized_vmm_names_no_host_device(case: Case, tmp_path: Path) -> None:
    _, plan = build_plans(case, tmp_path, "7.2", Accelerator.KVM)
    spec = build_case_spec(case, tmp_path, Design.MICROKERNELIZED)
    text = " ".join(plan.argv)
    assert plan.sandbox is not None
    assert not any(disk.path in text for disk in spec.disks)
    assert "iothread" not in text
    assert not any(value.startswith(("user", "tap")) for value in find_values(plan.argv, "-netdev"))
    assert not plan.taps
    bound = {
        str(path) for path, _ in (*plan.sandbox.read_only, *plan.sandbox.writable, *plan.sandbox.scratch)
    }
    assert not bound & {disk.path for disk in spec.disks}
    assert plan.sandbox.devices == ("/dev/kvm",)


def test_no_two_devices_share_an_address(tmp_path: Path) -> None:
    disks = "".join(f'[[disks]]\npath = "/srv/{n}.raw"\n' for n in range(MAX_DISKS))
    nics = '[[nics]]\nnetwork = "user"\n' * MAX_NICS
    others = '[[devices]]\ndriver = "rng"\n' * MAX_DEVICES
    full = Case("full", ("SPEC",), f'name = "full"\nports = ["a"]\n{disks}{nics}{others}')
    for design in DESIGNS:
        devices = read_devices(build_plan(build_case_spec(full, tmp_path, design), "7.2", Accelerator.TCG))
        places = [(each["bus"], int(each["addr"], 16)) for each in devices.values() if "addr" in each]
        assert len(places) == MAX_DISKS + MAX_NICS + MAX_DEVICES + 2
        assert len(set(places)) == len(places)
        addresses = [address for _, address in places]
        assert 0 < min(addresses) <= max(addresses) < 0x1F  # 0x1f of the root bus is the chipset's
        macs = [device["mac"] for device in devices.values() if "mac" in device]
        assert len(set(macs)) == MAX_NICS


def test_a_device_keeps_its_address_when_those_before_it_go(tmp_path: Path) -> None:
    text = """name = "left"
[[disks]]
slot = 3
path = "/srv/d.raw"
[[nics]]
slot = 2
network = "user"
"""
    whole = Case("whole", ("SPEC",), "\n".join([text.partition("[[")[0], *DISKS_AND_CARDS]))
    left = Case("left", ("SPEC",), text)
    for design in DESIGNS:
        all_devices, devices = (
            read_devices(build_plan(build_case_spec(case, tmp_path, design), "7.2", Accelerator.TCG))
            for case in (whole, left)
        )
        assert {name for name in devices if name.startswith(("disk", "nic"))} == {"disk3", "nic2"}
        for name in ("disk3", "nic2"):
            assert devices[name]["addr"] == all_devices[name]["addr"]
            assert devices[name].get("mac") == all_devices[name].get("mac")


def test_addresses_stay_when_a_device_is_added() -> None:
    from duovisor.hypervisor.qemu.pci import (
        DEVICE_SLOTS,
        DISK_SLOTS,
        NIC_SLOTS,
        SERIAL_PORTS_SLOT,
        at_pluggable,
        build_hot_plug_bus,
    )

    # a guest knows its devices by these for ever: a change here breaks every guest and every live switch
    slots = (SERIAL_PORTS_SLOT, DEVICE_SLOTS[0], NIC_SLOTS[0], DISK_SLOTS[0])
    assert slots == (0x02, 0x03, 0x08, 0x10)
    assert build_hot_plug_bus()[1] == "pcie-pci-bridge,id=pluggable,bus=pcie.0,addr=0x1e"
    assert at_pluggable(0x10).startswith("bus=pluggable,addr=0x10,")
    assert len(CASES) == len({case.name for case in CASES})
