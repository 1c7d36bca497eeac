"""The plan of a thin VMM's process: what is in it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.thin.config import parse_arguments
from duovisor.hypervisor.thin_plan import DeviceShape, ThinPaths, build_command_line, build_thin
from duovisor.sandbox import SandboxTools, build_sandbox_argv
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator, VirtualMachineSpec

if TYPE_CHECKING:
    from duovisor.hypervisor.plan import LaunchPlan

PATHS = ThinPaths(
    interpreter=Path("/usr/bin/python3.11"),
    runtime=(Path("/usr/lib/python3.11"),),
    package=Path("/opt/duovisor/duovisor"),
    memory_file=Path("/run/duovisor/memory/web"),
    devices=(DeviceShape(4),),
)
TOOLS = SandboxTools(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"), as_root=True)


def make_spec(**changes: Any) -> VirtualMachineSpec:
    document = {
        "name": "web",
        "design": "microkernelized",
        "cpus": 4,
        "memory_mib": 1024,
        "firmware": "direct-kernel",
        "kernel": {"path": "/boot/vmlinuz", "initrd": "/boot/initrd.img", "command_line": "quiet"},
        "disks": [{"path": "/disks/@qmp@.raw", "queues": 4, "queue_size": 128}],
        "nics": [{"bridge": "br0", "mac": "52:54:00:00:00:01"}],
        "devices": [{"driver": "rng"}],
    }
    return build_spec({**document, **changes})


# what each field of a specification is: had by the thin VMM, refused by find_obstacle, no business of a VMM's
HAD = {
    "name",
    "cpus",
    "cpu_model",
    "memory_mib",
    "kernel",
    "disks",
    "nics",
    "devices",
    "ports",
    "guest_agent",
}
REFUSED = {
    "design", "accelerator", "firmware", "secure_boot", "tpm", "graphics", "cdroms", "cpus_max",
    "memory_max_mib",
}  # fmt: skip
OF_OTHERS = {"vmm", "boot_order", "cpu_weight", "cpu_limit", "cpu_reservation", "memory_limit_mib"}


def test_no_field_of_a_specification_is_quietly_dropped() -> None:
    fields = set(VirtualMachineSpec.model_fields)
    assert fields == HAD | REFUSED | OF_OTHERS, "let the thin VMM have it, or refuse it in find_obstacle"


def test_processors_are_of_the_wanted_model() -> None:
    plan = build_thin(make_spec(cpu_model="x86-64-v2"), Accelerator.KVM, PATHS)
    assert parse_arguments(plan.resolve_argv(number_descriptors(plan))[7:]).cpu_model == "x86-64-v2"


def number_descriptors(plan: LaunchPlan) -> dict[str, int]:
    names = (*plan.sockets, *(name for name, _ in plan.files), "console-log", "state")
    return {name: number for number, name in enumerate(names, start=10)}


def test_the_process_understands_its_plan() -> None:
    plan = build_thin(make_spec(), Accelerator.KVM, PATHS)
    numbers = number_descriptors(plan)
    argv = plan.resolve_argv(numbers)
    assert argv[:7] == ("/usr/bin/python3.11", "-S", "-s", "-P", "-B", "-m", "duovisor.hypervisor.thin")
    config = parse_arguments(argv[7:])
    assert (config.name, config.cpus, config.memory_mib) == ("web", 4, 1024)
    assert plan.files == (
        ("kvm", Path("/dev/kvm")), ("memory", PATHS.memory_file), ("kernel", Path("/boot/vmlinuz")),
        ("initrd", Path("/boot/initrd.img")),
    )  # fmt: skip
    assert all(config.descriptors[name] == numbers[name] for name, _ in plan.files)
    assert config.command_line == "quiet console=hvc0"
    assert config.descriptors["qmp"] == numbers["qmp"]
    assert config.descriptors["debug"] == numbers["console-log"]
    devices = {device.name: device for device in config.devices}
    assert tuple(devices) == plan.channels == ("console-channel", "disk0", "nic0", "device0")
    assert all(device.socket == numbers[name] for name, device in devices.items())
    assert [(each.virtio_type, each.slot) for each in config.devices] == [(3, 2), (2, 16), (1, 8), (4, 3)]
    assert (devices["disk0"].queues, devices["disk0"].queue_size) == (4, 128)
    assert devices["nic0"].config == bytes.fromhex("525400000001 0100 0100")
    assert not config.is_incoming
    assert parse_arguments(plan.as_successor().resolve_argv(numbers)[7:]).is_incoming


def test_a_restored_one_inherits_a_state() -> None:
    plan = build_thin(make_spec(), Accelerator.KVM, PATHS, restored=True)
    numbers = number_descriptors(plan)
    assert parse_arguments(plan.resolve_argv(numbers)[7:]).descriptors["state"] == numbers["state"]
    assert "state" not in plan.sockets


def test_the_sandbox_shows_the_program_and_nothing_of_the_machine() -> None:
    plan = build_thin(make_spec(), Accelerator.KVM, PATHS)
    assert plan.sandbox is not None
    assert (plan.sandbox.devices, plan.sandbox.gids, plan.sandbox.writable) == ((), (), ())
    command = build_sandbox_argv(plan.sandbox, TOOLS, plan.argv)
    before_program = command[: command.index("duovisor.hypervisor.thin")]
    assert not [word for word in before_program if "/disks" in word or "/boot" in word]
    for source, target in (
        (PATHS.package, "/packages/duovisor"),
        (Path("/usr/lib/python3.11"), "/usr/lib/python3.11"),
    ):
        assert (source, target) in plan.sandbox.read_only


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"design": "monolithic", "devices": []}, "has no drivers inside"),
        ({"firmware": "bios", "kernel": None}, "has no BIOS"),
        ({"graphics": True}, "has no screen"),
        ({"tpm": True}, "has no TPM"),
        ({"cpus": 17}, "at most 16 processors, not 17"),
        ({"memory_mib": 16}, "at least 32 MiB of memory, not 16"),
        ({"nics": [{}]}, "has no user network"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint) as caught:
        build_thin(make_spec(**changes), Accelerator.KVM, PATHS)
    assert caught.value.remedy == "use vmm: qemu"


def test_without_kvm_it_is_refused() -> None:
    with pytest.raises(PlanError, match="runs on KVM alone"):
        build_thin(make_spec(), Accelerator.TCG, PATHS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "console=hvc0"),
        ("quiet", "quiet console=hvc0"),
        ("console=ttyS0 quiet", "console=ttyS0 quiet console=hvc0"),
        ("console=hvc0 console=tty0", "console=tty0 console=hvc0"),
        ('init="/bin/a  b"', 'init="/bin/a  b" console=hvc0'),
    ],
)
def test_the_console_that_there_is_comes_last(given: str, expected: str) -> None:
    assert build_command_line(given) == expected


def test_a_command_line_without_room_for_the_console_is_refused() -> None:
    with pytest.raises(PlanError, match="more than 2047 bytes"):
        build_command_line("x" * 2040)


def test_the_plan_is_data() -> None:
    plan = build_thin(make_spec(), Accelerator.KVM, PATHS)
    assert plan == build_thin(make_spec(), Accelerator.KVM, PATHS)
    json.loads(plan.argv[plan.argv.index("--config") + 1])
