"""Kernels on VMs' own disks: taken anew at each start, and there no longer than the VM runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.controlling import kernel_files
from duovisor.controlling.errors import BootFileError, DiskFileError
from duovisor.controlling.kernel_files import KernelFiles
from duovisor.controlling.vms.media import find_medium
from duovisor.controlling.vms.records import EventKind, VmEvent
from duovisor.controlling.vms.volumes import check_definition, check_places, lend_none
from duovisor.sandbox import uid_of
from duovisor.spec.cdrom import CdromSpec
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec

pytestmark = pytest.mark.skipif(
    not (shutil.which("mke2fs") and shutil.which("qemu-img")), reason="mke2fs or qemu-img is not installed"
)


def write_disk(folder: Path, *versions: str) -> Path:
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("etc", "usr", "var", "boot"):
        (root / name).mkdir(parents=True)
    for version in versions:
        (root / f"boot/vmlinuz-{version}").write_text(f"kernel {version}")
        (root / f"boot/initrd.img-{version}").write_text(f"initrd {version}")
    disk = folder / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk, "8m"], check=True)
    return disk


def write_clone(folder: Path, base: Path) -> Path:
    clone = folder / "clone.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, clone], check=True)
    return clone


def make_spec(disk: Path, *, slot: int = 0, **fields: Any) -> VirtualMachineSpec:
    return build_spec({
        "name": "web", "firmware": "direct-kernel",
        "kernel": {"disk": slot, "command_line": "mine"},
        "disks": [{"path": str(disk), **fields}],
    })  # fmt: skip


async def start(folder: Path, spec: VirtualMachineSpec) -> VirtualMachineSpec:
    async with KernelFiles(folder).around(lend_none)(spec) as found:
        return found


async def test_a_kernel_that_the_guest_installed_is_the_next_ones(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    for versions in (("6.1.0-9",), ("6.1.0-9", "6.1.0-10")):
        spec = make_spec(write_disk(tmp_path, *versions))
        check_definition(spec)
        found = await start(folder, spec)
        assert found.kernel is not None
        assert found.kernel.initrd is not None
        assert found.kernel.path == str(folder / "web.vmlinuz")
        assert (folder / "web.vmlinuz").read_text() == f"kernel {versions[-1]}"
        assert (folder / "web.initrd").read_text() == f"initrd {versions[-1]}"
        assert found.kernel.arguments.startswith("root=UUID=")
        assert found.kernel.arguments.endswith(" mine")
        assert found.without_places() == spec
    status = (folder / "web.vmlinuz").stat()
    assert status.st_mode & 0o777 == 0o400
    assert status.st_uid == (uid_of("web") if os.geteuid() == 0 else os.geteuid())
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_of_a_clone_too(tmp_path: Path) -> None:
    clone = write_clone(tmp_path, write_disk(tmp_path, "6.1"))
    await start(tmp_path / "kernels", make_spec(clone, format="qcow2"))
    assert (tmp_path / "kernels/web.vmlinuz").read_text() == "kernel 6.1"


async def test_a_vm_that_runs_keeps_what_it_was_started_with(tmp_path: Path) -> None:
    """A device that is plugged in is lent to the VM with it alone, its other disks left out."""
    found = await start(tmp_path / "kernels", make_spec(write_disk(tmp_path, "6.1")))
    plugged = found.model_copy(update={"disks": ()})
    check_places(plugged.without_places())
    assert await start(tmp_path / "kernels", plugged) == plugged


async def test_a_medium_for_one_that_does_not_run_needs_no_kernel(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "nothing")
    (tmp_path / "cd.iso").write_bytes(b"medium")
    lend = KernelFiles(tmp_path / "kernels").around(lend_none)
    await find_medium(spec, CdromSpec(path=f"{tmp_path}/cd.iso"), lend)


async def test_another_vm_is_left_as_it_is(tmp_path: Path) -> None:
    spec = build_spec({"name": "web", "disks": [{"path": "/nowhere"}]})
    assert await start(tmp_path / "kernels", spec) is spec
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    ("slot", "fields", "message"),
    [
        (1, {}, "disk1, which it has not"),
        (0, {"format": "vmdk"}, "a vmdk image; raw and qcow2"),
        (0, {"format": "qcow2"}, "is no qcow2 image"),
        (0, {"driver": "encrypted", "key_file": "/key"}, "only the driver encrypted"),
    ],
)
async def test_what_cannot_be_read_is_told(
    tmp_path: Path, slot: int, fields: dict[str, Any], message: str
) -> None:
    spec = make_spec(write_disk(tmp_path, "6.1"), slot=slot, **fields)
    with pytest.raises((BootFileError, DiskFileError), match=message):
        await start(tmp_path / "kernels", spec)
    assert not (tmp_path / "kernels").exists()


async def test_a_disk_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(BootFileError, match="there is no kernel with a RAM disk on disk0 of web"):
        await start(tmp_path / "kernels", make_spec(write_disk(tmp_path)))
    with pytest.raises(DiskFileError, match="No such file"):
        await start(tmp_path / "kernels", make_spec(tmp_path / "nothing"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_disk_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(DiskFileError, match="neither a file nor a block device"):
        await start(tmp_path / "kernels", make_spec(tmp_path / "odd"))


async def test_a_guest_does_not_say_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_files, "ARGUMENTS_MAX", 20)
    with pytest.raises(BootFileError, match="more than 20 characters"):
        await start(tmp_path / "kernels", make_spec(write_disk(tmp_path, "6.1")))


@pytest.mark.parametrize(("kind", "stays"), [(EventKind.STOPPED, False), (EventKind.PAUSED, True)])
async def test_it_goes_with_the_vms_end(tmp_path: Path, kind: EventKind, *, stays: bool) -> None:
    await start(tmp_path, make_spec(write_disk(tmp_path, "6.1")))
    KernelFiles(tmp_path).on_event(VmEvent(kind=kind, name="web", uuid="u"))
    assert [(tmp_path / f"web{suffix}").exists() for suffix in (".vmlinuz", ".initrd")] == [stays, stays]


async def test_what_belongs_to_no_running_vm_is_swept(tmp_path: Path) -> None:
    kernels = KernelFiles(tmp_path)
    await start(tmp_path, make_spec(write_disk(tmp_path, "6.1")))
    kernels.sweep(["web"])
    assert (tmp_path / "web.initrd").exists()
    kernels.sweep(["other"])
    assert not (tmp_path / "web.initrd").exists()
    assert not (tmp_path / "web.vmlinuz").exists()


def test_a_definition_says_only_which_disk() -> None:
    spec = build_spec({
        "name": "web", "firmware": "direct-kernel", "disks": [{"path": "/srv/web.raw", "slot": 3}],
        "kernel": {"disk": 3, "path": "/etc/shadow"},
    })  # fmt: skip
    with pytest.raises(DiskFileError, match="has a place besides"):
        check_definition(spec)
    check_definition(spec.without_places())
    assert spec.kernel is not None
    elsewhere = spec.model_copy(
        update={"kernel": spec.kernel.without_places().model_copy(update={"disk": 0})}
    )
    with pytest.raises(DiskFileError, match="disk0, which the VM has not"):
        check_definition(elsewhere)
