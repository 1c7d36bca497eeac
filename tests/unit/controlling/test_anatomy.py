"""The anatomy of a VM: read from real processes, here from this one and its children."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.controlling.conftest import run_as_stranger

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.description import (
    FILE,
    IncarnationDescription,
    MachineDescription,
    Phase,
    PlanDescription,
    ProcessDescription,
    list_running,
    read_description,
    write_description,
)
from duovisor.controlling.errors import MachineNotFoundError
from duovisor.controlling.key_files import create_key, open_key
from duovisor.controlling.run_folder import open_run_folder
from duovisor.process_identity import read_start_ticks
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOST = ("host file system", "host network", "host processes")


def describe_process(role: str, pid: int, device: str = "") -> ProcessDescription:
    return ProcessDescription(
        role=role, pid=pid, device=device, watched_pid=pid, start_ticks=0, sandboxed=False, argv=(), log=""
    )


def describe(
    vmm: int,
    *partitions: ProcessDescription,
    memory_file: str = "",
    disks: Sequence[dict[str, Any]] = (),
    nics: Sequence[dict[str, Any]] = (),
    design: str = "monolithic",
) -> MachineDescription:
    """A machine whose VMM is the process ``vmm``."""
    return MachineDescription(
        uuid="",
        phase=Phase.RUNNING,
        accelerator=Accelerator.TCG,
        accelerator_reason="because",
        owner_pid=os.getpid(),
        memory_file=memory_file,
        started_at=0.0,
        current=IncarnationDescription(
            number=1,
            spec=build_spec({"name": "vm", "design": design, "disks": disks, "nics": nics}),
            plan=PlanDescription(argv=(), sockets=(), channels=()),
            processes=(describe_process("vmm", vmm), *partitions),
        ),
    )


@contextmanager
def child(pass_fds: tuple[int, ...] = ()) -> Iterator[int]:
    """A process that waits."""
    program = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=pass_fds
    )
    try:
        yield program.pid
    finally:
        program.communicate()


def test_layers_and_drivers() -> None:
    disks, nics = [{"path": "/none.raw"}], [dict[str, Any]()]
    with child() as vmm, child() as driver:
        partition = describe_process("storage driver", driver, "disk0")
        inside = read_anatomy(describe(vmm, disks=disks, nics=nics))
        outside = read_anatomy(describe(vmm, partition, disks=disks, nics=nics, design="microkernelized"))
    assert [(each.layer, each.role, each.drivers) for each in inside.processes] == [
        ("controlling", "manager", ()),
        ("hypervisor", "vmm", ("disk0", "nic0")),
    ]
    assert [(each.layer, each.role, each.drivers) for each in outside.processes] == [
        ("controlling", "manager", ()),
        ("controlling", "storage driver", ("disk0",)),
        ("hypervisor", "vmm", ()),
    ]


def test_a_held_image_and_memory_are_seen(tmp_path: Path) -> None:
    image, other, memory = tmp_path / "disk.raw", tmp_path / "other.raw", tmp_path / "memory"
    for path in (image, other, memory):
        path.write_bytes(bytes(4096))
    disks: list[dict[str, Any]] = [{"path": str(image)}, {"path": str(other), "read_only": True}]
    with image.open("rb") as held, memory.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        with child((held.fileno(),)) as vmm:
            anatomy = read_anatomy(describe(vmm, memory_file=str(memory), disks=disks))
    manager, process = anatomy.processes
    # this process is the manager, and other tests may have left devices open in it
    access = tuple(each for each in manager.host_access if not each.startswith("device "))
    assert access == ("guest memory", f"image {image} (read-write)", *HOST)
    assert process.host_access == (f"image {image} (read-write)", *HOST)


def test_who_holds_a_disk_key_is_seen(tmp_path: Path) -> None:
    key = tmp_path / "disk.key"
    create_key(key)
    with open_key(str(key)) as held:
        with child((held,)) as driver:
            anatomy = read_anatomy(describe(driver))
    assert anatomy.processes[-1].host_access == ("disk key", *HOST)


def test_devices_are_named() -> None:
    memory = os.open("/dev/shm", os.O_RDONLY) if os.path.isdir("/dev/shm") else os.open("/", os.O_RDONLY)
    with open("/dev/zero", "rb") as device, child((device.fileno(), memory)) as vmm:
        access = read_anatomy(describe(vmm)).processes[-1].host_access
    os.close(memory)
    assert access == ("device /dev/zero", *HOST)  # a folder under /dev is none


def test_an_image_that_was_deleted_hides_no_process(tmp_path: Path) -> None:
    with child() as vmm:
        gone = {"path": str(tmp_path / "gone.raw")}
        anatomy = read_anatomy(describe(vmm, memory_file=str(tmp_path / "gone"), disks=[gone]))
    assert [each.role for each in anatomy.processes] == ["manager", "vmm"]


def test_a_process_that_has_just_ended_is_left_out() -> None:
    with child() as vmm:
        pass
    assert [each.role for each in read_anatomy(describe(vmm)).processes] == ["manager"]


def test_confinement_is_read_from_the_kernel() -> None:
    with child() as vmm:
        confinement = read_anatomy(describe(vmm)).processes[-1].confinement
    assert f"uid {os.geteuid()}" in confinement
    assert any("capabilities" in each for each in confinement)
    assert "no new privileges" not in confinement or os.geteuid() != 0


def test_a_process_of_somebody_else_says_so() -> None:
    def look() -> None:
        (_, process) = read_anatomy(describe(1)).processes
        assert process.host_access == ("unknown: this user may not look into the process",)

    run_as_stranger(look)


def test_a_description_is_found_while_a_process_of_the_vm_lives(tmp_path: Path) -> None:
    assert list_running(tmp_path / "none") == list_running(tmp_path) == []
    with open_run_folder(tmp_path, "vm") as folder:
        with pytest.raises(MachineNotFoundError, match="VM 'vm' is just starting or ending"):
            read_description(tmp_path, "vm")
        with child() as pid:
            ticks = read_start_ticks(pid)
            machine = describe(pid, disks=[{"path": "/a"}])
            process = machine.processes[0].model_copy(update={"start_ticks": ticks})
            current = machine.current.model_copy(update={"processes": (process,)})
            machine = machine.model_copy(update={"current": current})
            write_description(folder, machine)
            assert list_running(tmp_path) == ["vm"]
            assert read_description(tmp_path, "vm") == machine
            with pytest.raises(MachineNotFoundError) as caught:
                read_description(tmp_path, "other")
            assert str(caught.value) == "no VM named 'other' runs (running: vm)"
            write_description(folder, machine.model_copy(update={"phase": Phase.STARTING}))
            assert list_running(tmp_path) == []
            (folder / FILE).write_text(machine.model_dump_json()[:-20])
            with pytest.raises(MachineNotFoundError, match="just starting or ending"):
                read_description(tmp_path, "vm")
            write_description(folder, machine)
        assert list_running(tmp_path) == []
    with pytest.raises(MachineNotFoundError, match="running: none"):
        read_description(tmp_path, "vm")
