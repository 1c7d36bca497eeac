"""What is plugged into a QEMU that runs: the same device as at a start, as QMP has it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from tests.recorded.abilities import VERSIONS, load_abilities

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.qemu.disks import build_disks
from duovisor.hypervisor.qemu.hot_plug import build_disk_plug, build_nic_plug
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.hypervisor.qemu.nics import build_nics
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator, DiskFormat

if TYPE_CHECKING:
    from duovisor.hypervisor.qemu.hot_plug import Command
    from duovisor.spec.vm import VirtualMachineSpec

INSIDE, OUTSIDE = "monolithic", "microkernelized"
DISKS = [{"path": "/a"}, {"path": "/b", "slot": 4, "serial": "1234", "queues": 2, "format": "qcow2"}]
NICS = [
    {"network": "user", "forward": ["tcp:2222:22", "udp:5353:53"]},
    {"bridge": "br0", "slot": 6, "mac": "52:54:00:00:00:01"},
]
CHAIN = (ImageFile("/b", DiskFormat.QCOW2), ImageFile("/base", DiskFormat.RAW))


def build(design: str) -> VirtualMachineSpec:
    return build_spec({"name": "vm", "design": design, "disks": DISKS, "nics": NICS})


def as_words(command: Command) -> dict[str, str]:
    """A device's properties as the command line writes them."""
    switches = {True: "on", False: "off"}
    found = command.arguments.items()
    return {key: switches[value] if isinstance(value, bool) else str(value) for key, value in found}


def find_device(words: list[str], name: str) -> dict[str, str]:
    """The same from a command line."""
    devices = [value for option, value in pairwise(words) if option == "-device"]
    (word,) = [each for each in devices if f"id={name}," in each]
    driver, *pairs = word.split(",")
    return {"driver": driver, **dict(pair.partition("=")[::2] for pair in pairs)}


@pytest.mark.parametrize("design", [INSIDE, OUTSIDE])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("accelerator", Accelerator)
def test_a_device_is_what_it_is_at_a_start(design: str, version: str, accelerator: Accelerator) -> None:
    spec, qemu = build(design), load_abilities(version)
    disk = build_disk_plug(spec, 4, qemu, CHAIN)
    assert as_words(disk.front_end) == find_device(build_disks(spec, qemu), "disk4")
    for slot, name in ((0, "nic0"), (6, "nic6")):
        nic = build_nic_plug(spec, slot, qemu, accelerator)
        assert as_words(nic.front_end) == find_device(build_nics(spec, qemu, accelerator), name)
        assert (nic.device, nic.front_end.name) == (name, "device_add")
    numbers: dict[str, Any] = disk.front_end.arguments
    assert (numbers["num-queues"], numbers["addr"], numbers["disable-legacy"]) == (2, "0x14", "on")


def test_a_disk_with_its_driver_in_the_vmm() -> None:
    plug = build_disk_plug(build(INSIDE), 4, load_abilities("7.2"), CHAIN)
    assert (plug.descriptors, plug.binds, plug.channel) == ((), (), ())
    assert plug.back_end[0] == ("object-add", {"qom-type": "iothread", "id": "disk4-thread"})
    nodes = [command.arguments["node-name"] for command in plug.back_end[1:]]
    assert nodes == ["disk4-backing1-file", "disk4-backing1", "disk4-file", "disk4"]
    assert plug.front_end.arguments["serial"] == "1234"  # QEMU reads a number as a number, if it is one
    json.dumps([command.arguments for command in plug.back_end])


def test_a_disk_with_its_driver_elsewhere() -> None:
    plug = build_disk_plug(build(OUTSIDE), 4, load_abilities("7.2"), CHAIN)
    assert (plug.descriptors, plug.binds, plug.back_end) == (("disk4",), (), ())
    (chardev,) = plug.channel
    assert chardev.arguments["id"] == "disk4-channel"
    socket = {"addr": {"type": "fd", "data": {"str": "disk4"}}, "server": True, "wait": False}
    assert chardev.arguments["backend"] == {"type": "socket", "data": socket}
    assert "/b" not in json.dumps(plug.channel)


def test_cards() -> None:
    qemu = load_abilities("7.2")
    tcg = Accelerator.TCG
    user = build_nic_plug(build(INSIDE), 0, qemu, tcg)
    assert user.back_end[0].arguments == {
        "type": "user", "id": "nic0-net", "net": "10.0.2.0/24",
        "hostfwd": [{"str": "tcp:127.0.0.1:2222-:22"}, {"str": "udp:127.0.0.1:5353-:53"}],
    }  # fmt: skip
    tap = build_nic_plug(build(INSIDE), 6, qemu, tcg)
    assert tap.descriptors == ("nic6",)
    assert tap.back_end[0].arguments == {"type": "tap", "id": "nic6-net", "fd": "nic6", "vhost": False}
    helper = build_nic_plug(build(OUTSIDE), 0, qemu, tcg)
    assert (helper.descriptors, helper.binds, helper.back_end) == ((), ("nic0",), ())
    address = {"type": "unix", "path": "/channels/nic0.sock"}
    assert helper.channel[0].arguments == {
        "type": "stream", "id": "nic0-net", "server": True, "addr": address,
    }  # fmt: skip
    driver = build_nic_plug(build(OUTSIDE), 6, qemu, tcg)
    assert (driver.descriptors, driver.binds) == ((), ("nic6",))
    assert driver.channel[0].arguments["backend"]["data"]["addr"]["data"] == {"path": "/channels/nic6.sock"}
    assert driver.back_end[0].arguments == {
        "type": "vhost-user", "id": "nic6-net", "chardev": "nic6-channel", "queues": 1,
    }  # fmt: skip


def test_what_a_design_cannot_have() -> None:
    spec = build(INSIDE)
    (own,) = build_spec({"name": "vm", "disks": [{"driver": "/d.py"}]}).disks
    with pytest.raises(PlanError):
        build_disk_plug(spec.model_copy(update={"disks": (own,)}), 0, load_abilities("7.2"), ())
