"""The disk with fio and its libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from duovisor import process
from duovisor.controlling.images import tools_disk
from duovisor.controlling.images.errors import ImageBuildError

LDD = """\
\tlinux-vdso.so.1 (0x00007ffd8a5d2000)
\tlibaio.so.1 => /lib/x86_64-linux-gnu/libaio.so.1 (0x00007f1c5e000000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c5d000000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f1c5e200000)
"""


def test_ldd_is_read() -> None:
    found = tools_disk.parse_ldd(LDD)
    assert found.loader == Path("/lib64/ld-linux-x86-64.so.2")
    assert found.libraries == {
        "libaio.so.1": Path("/lib/x86_64-linux-gnu/libaio.so.1"),
        "libc.so.6": Path("/lib/x86_64-linux-gnu/libc.so.6"),
    }


def test_missing_library_is_named() -> None:
    with pytest.raises(ImageBuildError, match=r"libaio\.so\.1 is missing"):
        tools_disk.parse_ldd("\tlibaio.so.1 => not found\n")


def test_static_program_has_no_loader() -> None:
    with pytest.raises(ImageBuildError, match="no dynamic loader"):
        tools_disk.parse_ldd("\tstatically linked\n")


def test_size_is_whole_mib_and_holds_the_files() -> None:
    size = tools_disk.compute_disk_bytes([1, 4096, 80 << 20])
    assert size % (1 << 20) == 0
    assert size > (80 << 20) + 8192


@pytest.mark.skipif(
    not all(map(shutil.which, ("fio", "mke2fs", "debugfs"))), reason="needs fio and the ext4 tools"
)
def test_disk_holds_fio_and_its_loader(tmp_path: Path) -> None:
    disk = tmp_path / "tools.raw"
    tools_disk.build_tools_disk(disk, tmp_path)
    for name in ("fio", "lib/loader"):
        process.run(["debugfs", "-R", f"dump /{name} {tmp_path}/back", str(disk)])
        assert (tmp_path / "back").read_bytes() == (tmp_path / "tools" / name).read_bytes()
    assert disk.stat().st_size % (1 << 20) == 0
