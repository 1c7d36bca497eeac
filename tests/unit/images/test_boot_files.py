"""Kernels taken out of disk images: file systems that mke2fs made, in tables and formats that images have."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.images.boot_files import find_boot_files, find_versions, take_boot_files
from duovisor.controlling.images.disk_reader import DiskReadError, open_chain, open_reader
from duovisor.controlling.images.gpt import LINUX_ROOT_X86_64, Partition, build_tables
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = "99782ce7-1a3a-5e42-a971-3a78290a678e"
KERNEL, INITRD = os.urandom(3 << 20), bytes(1 << 20) + os.urandom(100_001)
COMMAND_LINE = f"root=UUID={IDENTITY} ro console=ttyS0 console=hvc0"
FIRST_SECTOR, SECTORS = 2048, 40960

pytestmark = pytest.mark.skipif(
    not (shutil.which("mke2fs") and shutil.which("qemu-img")), reason="mke2fs or qemu-img is not installed"
)


def write_system(folder: Path, versions: tuple[str, ...], *, boot: str = "boot", initrd: str) -> None:
    for name in ("etc", "usr", "var", boot):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for version in versions:
        (folder / boot / f"vmlinuz-{version}").write_bytes(KERNEL)
        (folder / boot / initrd.format(version)).write_bytes(INITRD)


def make_file_system(path: Path, folder: Path, *options: str) -> None:
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-U", IDENTITY, *options, "-d", str(folder), str(path), "16m"],
        check=True,
    )


def make_disk(path: Path, *systems: Path) -> None:
    """A GPT disk with a partition for each file system."""
    partitions = [
        Partition(number, LINUX_ROOT_X86_64, UUID(int=number), "", first, first + SECTORS - 1)
        for number, first in enumerate(range(FIRST_SECTOR, 1 << 20, SECTORS), start=1)
    ][: len(systems)]
    sectors = FIRST_SECTOR + SECTORS * len(systems) + 2048
    tables = build_tables(UUID(int=99), sectors, partitions)
    with path.open("wb") as disk:
        disk.truncate(sectors * 512)
        disk.write(tables.head)
        for partition, system in zip(partitions, systems, strict=True):
            disk.seek(partition.first * 512)
            disk.write(system.read_bytes())


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with two kernels of which the newer one is not the last by its letters."""
    folder = tmp_path_factory.mktemp("system")
    write_system(folder / "root", ("6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64"), initrd="initrd.img-{}")
    make_file_system(folder / "system.ext4", folder / "root")
    return folder / "system.ext4"


@pytest.mark.parametrize("how", ["bare", "gpt", "qcow2", "compressed"])
def test_the_newest_kernel_is_taken(system: Path, tmp_path: Path, how: str) -> None:
    disk = system
    if how != "bare":
        disk = tmp_path / "disk"
        make_disk(disk, system)
    if how in ("qcow2", "compressed"):
        raw, disk = disk, tmp_path / "disk.qcow2"
        compress = ["-c"] if how == "compressed" else []
        subprocess.run(["qemu-img", "convert", *compress, "-O", "qcow2", raw, disk], check=True)
    found = take_boot_files(disk, tmp_path)
    assert found is not None
    assert (found.version, found.command_line) == ("6.1.0-56-cloud-amd64", COMMAND_LINE)
    assert (tmp_path / "vmlinuz").read_bytes() == KERNEL
    assert (tmp_path / "initrd.img").read_bytes() == INITRD


def test_boot_may_be_a_partition_of_its_own(tmp_path: Path) -> None:
    write_system(tmp_path / "root", (), initrd="")
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-0-rescue-1234").write_bytes(b"rescue")
    write_system(tmp_path / "other", ("6.8.0-60-generic",), boot=".", initrd="initramfs-{}.img")
    for name in ("etc", "usr", "var"):
        (tmp_path / "other" / name).rmdir()
    make_file_system(tmp_path / "root.ext4", tmp_path / "root")
    make_file_system(tmp_path / "boot.ext4", tmp_path / "other", "-O", "^64bit", "-b", "1024", "-U", "random")
    make_disk(tmp_path / "disk", tmp_path / "boot.ext4", tmp_path / "root.ext4")
    found = take_boot_files(tmp_path / "disk", tmp_path)
    assert found is not None
    assert (found.version, found.kernel, found.initrd) == ("6.8.0-60-generic", KERNEL, INITRD)
    assert found.command_line == COMMAND_LINE


def test_versions_are_compared_by_their_numbers() -> None:
    names = ("vmlinuz-6.1.0-9", "vmlinuz-6.1.0-10", "vmlinuz-5.10.0-200", "vmlinuz-0-rescue-ab", "config-7")
    assert find_versions(dict.fromkeys(names, 1)) == ["6.1.0-10", "6.1.0-9", "5.10.0-200"]


@pytest.mark.parametrize("content", [b"", bytes(4096), b"QFI\xfb" + bytes(200), os.urandom(8192)])
def test_a_disk_without_a_kernel_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "disk").write_bytes(content)
    assert take_boot_files(tmp_path / "disk", tmp_path) is None
    assert os.listdir(tmp_path) == ["disk"]


def test_a_kernel_without_its_ram_disk_is_left(tmp_path: Path) -> None:
    write_system(tmp_path / "root", ("6.1",), initrd="initrd.img-{}")
    (tmp_path / "root/boot/initrd.img-6.1").unlink()
    make_file_system(tmp_path / "disk", tmp_path / "root")
    assert take_boot_files(tmp_path / "disk", tmp_path) is None


def test_links_lead_to_the_kernel_that_the_guest_chose(tmp_path: Path) -> None:
    write_system(tmp_path / "root", ("6.1.0-9", "6.1.0-10"), initrd="initrd.img-{}")
    (tmp_path / "root/boot/vmlinuz-6.1.0-9").write_bytes(b"chosen")
    (tmp_path / "root/vmlinuz").symlink_to("boot/vmlinuz-6.1.0-9")
    (tmp_path / "root/initrd.img").symlink_to("/boot/../boot/./initrd.img-6.1.0-9")
    make_file_system(tmp_path / "disk", tmp_path / "root")
    found = take_boot_files(tmp_path / "disk", tmp_path)
    assert found is not None
    assert (found.version, found.kernel, found.command_line) == ("6.1.0-9", b"chosen", COMMAND_LINE)


@pytest.mark.parametrize("target", ["vmlinuz", "boot/nothing", "../" * 40 + "x" * 200, ""])
def test_links_that_lead_nowhere_are_none(system: Path, tmp_path: Path, target: str) -> None:
    write_system(tmp_path / "root", ("6.1",), initrd="initrd.img-{}")
    if target:
        (tmp_path / "root/vmlinuz").symlink_to(target)
    (tmp_path / "root/initrd.img").symlink_to("boot/initrd.img-6.1")
    make_file_system(tmp_path / "disk", tmp_path / "root")
    found = take_boot_files(tmp_path / "disk", tmp_path)
    assert found is not None
    assert found.version == "6.1"


MENU = """
set default="${saved_entry}"
menuentry 'Another' {
    linux PREFIX/vmlinuz-2
    initrd PREFIX/initrd.img-1
}
menuentry 'Linux' {
    linux PREFIX/vmlinuz-1 root=/dev/vda1 quiet console=ttyS0,115200
    initrd PREFIX/early.img PREFIX/initrd.img-1
}
"""


@pytest.mark.parametrize("apart", [False, True])
def test_what_grub_would_start_goes_before(tmp_path: Path, *, apart: bool) -> None:
    write_system(tmp_path / "root", () if apart else ("1", "2"), initrd="initrd.img-{}")
    boot = tmp_path / ("other" if apart else "root/boot")
    (boot / "grub").mkdir(parents=True)
    (boot / "grub/grub.cfg").write_text(MENU.replace("PREFIX", "" if apart else "/boot"))
    (boot / "grub/grubenv").write_text("# GRUB Environment Block\nsaved_entry=Linux\n".ljust(1024, "#"))
    for name, content in (("vmlinuz-1", b"one"), ("early.img", b"microcode"), ("initrd.img-1", INITRD)):
        (boot / name).write_bytes(content)
    systems = [tmp_path / "root.ext4"]
    make_file_system(systems[0], tmp_path / "root")
    if apart:
        systems.append(tmp_path / "boot.ext4")
        make_file_system(systems[1], boot, "-U", "random")
    make_disk(tmp_path / "disk", *systems)
    found = take_boot_files(tmp_path / "disk", tmp_path)
    assert found is not None
    assert (found.version, found.kernel) == ("1", b"one")
    assert found.initrd == b"microcode\0\0\0" + INITRD
    assert found.command_line == "root=/dev/vda1 quiet console=ttyS0,115200 console=hvc0"


def test_a_clone_is_read_through_what_it_is_based_on(system: Path, tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", system, base], check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top, "64m"], check=True
    )
    commands = ["-c", "write -q -P 7 1k 512", "-c", "write -q -z 20m 1m"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, top], check=True)
    with open_chain(read_chain(str(top), DiskFormat.QCOW2)) as reader:
        assert reader.size == 64 << 20
        assert reader.read(0, 3 << 10) == bytes(1 << 10) + b"\7" * 512 + system.read_bytes()[1536 : 3 << 10]
        assert reader.read((16 << 20) - 4, 8) == system.read_bytes()[-4:] + bytes(4)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True)
    with open_chain(read_chain(str(top), DiskFormat.QCOW2)) as reader:
        found = find_boot_files(reader)
    assert found is not None
    assert found.kernel == KERNEL
    descriptor = os.open(top, os.O_RDONLY)
    with pytest.raises(DiskReadError, match="another below it"):
        open_reader(descriptor)
    os.close(descriptor)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(440, 34 * 512), garbage=st.binary(min_size=1, max_size=64))
def test_no_partition_table_is_trusted(system: Path, tmp_path: Path, place: int, garbage: bytes) -> None:
    if not (tmp_path / "disk").exists():
        make_disk(tmp_path / "disk", system)
    descriptor = os.open(tmp_path / "disk", os.O_RDWR)
    was = os.pread(descriptor, len(garbage), place)
    os.pwrite(descriptor, garbage, place)
    found = None
    with contextlib.suppress(DiskReadError):
        found = find_boot_files(open_reader(descriptor))
    os.pwrite(descriptor, was, place)
    os.close(descriptor)
    assert found is None or found.kernel == KERNEL


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 600 << 10), garbage=st.binary(min_size=1, max_size=64))
def test_no_file_system_is_trusted(system: Path, tmp_path: Path, place: int, garbage: bytes) -> None:
    """Its first part, with all that describes files in it, overwritten anywhere with anything."""
    descriptor = os.open(system, os.O_RDWR)
    was = os.pread(descriptor, len(garbage), place)
    os.pwrite(descriptor, garbage, place)
    found = None
    with contextlib.suppress(DiskReadError):
        found = find_boot_files(open_reader(descriptor))
    os.pwrite(descriptor, was, place)
    os.close(descriptor)
    assert found is None or found.command_line.startswith("root=UUID=")
