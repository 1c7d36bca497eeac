"""Opening and locking the file behind a disk, against QEMU's own tools."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.unit.controlling.conftest import let_in, run_as_stranger
from tests.unit.formats.test_vhdx_log import read_header, write_header

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.errors import DiskFileError, DiskLockedError, DriverFileError, KeyFileError
from duovisor.controlling.key_files import create_key
from duovisor.spec.vm import DiskSpec

SIZE = 1 << 20
needs_qemu_io = pytest.mark.skipif(
    shutil.which("qemu-io") is None, reason="qemu-io is not installed (qemu-utils)"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.touch()
    os.truncate(path, SIZE)
    return path


def build(path: Path, **fields: Any) -> DiskSpec:
    return DiskSpec(path=str(path), **fields)


def refuse(disk: DiskSpec, kind: type[DiskFileError] | type[DiskLockedError] = DiskFileError) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(kind) as caught, open_disk(disk):
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
    return str(caught.value)


def test_opens(image: Path) -> None:
    with open_disk(build(image)) as opened:
        assert (opened.size_bytes, opened.is_block_device) == (SIZE, False)
        assert os.pwrite(opened.descriptor, b"x" * 512, 0) == 512
        flags = fcntl.fcntl(opened.descriptor, fcntl.F_GETFD)
        assert flags & fcntl.FD_CLOEXEC
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.descriptor)


def test_read_only_is_read_only(image: Path) -> None:
    image.chmod(0o444)
    with (
        open_disk(build(image, read_only=True)) as opened,
        pytest.raises(OSError, match="Bad file descriptor"),
    ):
        os.pwrite(opened.descriptor, b"x", 0)


def test_cache_none_is_o_direct(image: Path) -> None:
    with open_disk(build(image, cache="none")) as opened:
        assert fcntl.fcntl(opened.descriptor, fcntl.F_GETFL) & os.O_DIRECT
    with open_disk(build(image)) as opened:
        assert not fcntl.fcntl(opened.descriptor, fcntl.F_GETFL) & os.O_DIRECT


def test_o_direct_where_there_is_none(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    shm = Path("/dev/shm")
    if not os.path.ismount(shm):
        pytest.skip("no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        path = Path(folder) / "disk.raw"
        path.write_bytes(bytes(SIZE))
        try:
            os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
        except OSError:
            assert "its file system has no O_DIRECT; use cache: writeback" in refuse(
                build(path, cache="none")
            )
        else:  # tmpfs has O_DIRECT since Linux 6.6
            with open_disk(build(path, cache="none")) as opened:
                assert opened.size_bytes == SIZE


def test_what_cannot_be_a_disk(tmp_path: Path, image: Path) -> None:
    missing = tmp_path / "missing.raw"
    assert f"disk image {missing} does not exist (qemu-img create" in refuse(build(missing))
    assert f"disk image {tmp_path} is a directory" in refuse(build(tmp_path))
    assert "does not exist" in refuse(build(tmp_path / "no-folder/disk.raw"))
    assert "Not a directory" in refuse(build(image / "below"))
    assert "File name too long" in refuse(build(tmp_path / ("x" * 300)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "Too many levels of symbolic links" in refuse(build(tmp_path / "loop"))
    (tmp_path / "dangling").symlink_to(missing)
    assert "does not exist" in refuse(build(tmp_path / "dangling"))


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is neither a file nor a block device" in refuse(build(tmp_path / "fifo"))
    assert "is neither a file nor a block device" in refuse(build(Path("/dev/null")))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert "is neither a file nor a block device" in refuse(build(tmp_path / "socket"))


@pytest.mark.parametrize("size", [1, 511, 513, SIZE + 100])
def test_a_size_that_is_no_multiple_of_512(image: Path, size: int) -> None:
    os.truncate(image, size)
    assert f"has {size} bytes, which is no multiple of 512 (truncate -s %512" in refuse(build(image))


def test_an_empty_image(image: Path) -> None:
    os.truncate(image, 0)
    assert f"disk image {image} is empty" in refuse(build(image))


@needs_qemu_io
def test_a_size_inside_a_format_is_the_format_s_own(image: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    os.truncate(image, (os.path.getsize(image) | 511) + 78)
    with open_disk(build(image, format="qcow2")) as opened:
        assert opened.size_bytes == os.path.getsize(image)


def test_a_format_that_the_image_does_not_have(image: Path) -> None:
    said = refuse(build(image, format="qcow2"))
    assert "is no qcow2 image: it bears no signature of that format (correct the disk's format)" in said


@needs_qemu_io
def test_a_chain_is_found(image: Path) -> None:
    top = image.with_name("top")
    words = ["-f", "qcow2", "-b", image.name, "-F", "raw", str(top)]
    subprocess.run(["qemu-img", "create", "-q", *words], check=True)
    with open_disk(build(top, format="qcow2")) as opened:
        assert [each.path for each in opened.chain] == [str(top), str(image)]
    with open_disk(build(image)) as opened:
        assert [each.path for each in opened.chain] == [str(image)]


def test_no_permission(image: Path) -> None:
    image.chmod(0o444)
    let_in(image.parent)

    def look() -> None:
        assert "for writing: Permission denied (make it read_only, or" in refuse(build(image))
        with open_disk(build(image, read_only=True)):
            pass

    run_as_stranger(look)
    image.chmod(0o400)
    run_as_stranger(lambda: check("for reading: Permission denied", refuse(build(image, read_only=True))))
    image.parent.chmod(0o700)
    run_as_stranger(lambda: check("cannot look at disk image", refuse(build(image))))


def check(part: str, text: str) -> None:
    assert part in text


def test_one_writer_or_many_readers(image: Path) -> None:
    writer, reader = build(image), build(image, read_only=True)
    with open_disk(writer):
        for other in (writer, reader):
            said = refuse(other, DiskLockedError)
            assert f"{image} is in use by another VM or disk tool" in said
    with open_disk(reader), open_disk(reader):
        refuse(writer, DiskLockedError)
    with open_disk(writer):
        pass


def test_a_lock_of_another_kind_counts_as_one(image: Path) -> None:
    """A tool that locks the whole file for writing keeps us from taking even our own bytes."""
    with image.open("r+b") as file:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, whole)
        refuse(build(image), DiskLockedError)
        refuse(build(image, read_only=True), DiskLockedError)


def test_the_lock_lives_as_long_as_a_child_holds_the_descriptor(image: Path) -> None:
    """A driver partition keeps its image locked though the process that started it is done with it."""
    with open_disk(build(image)) as opened:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE, pass_fds=(opened.descriptor,),
        )  # fmt: skip
    try:
        refuse(build(image), DiskLockedError)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with open_disk(build(image)):
        pass


def hold(image: Path, *options: str, disk_format: str = "raw") -> subprocess.Popen[str]:
    """A qemu-io that has opened the image and waits for commands."""
    tool = subprocess.Popen(
        ["qemu-io", "-f", disk_format, *options, str(image)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert tool.stdin is not None
    assert tool.stdout is not None
    tool.stdin.write("length\n")  # answered once the image is open
    tool.stdin.flush()
    assert "1 MiB" in tool.stdout.readline()
    return tool


@needs_qemu_io
@pytest.mark.parametrize(("ours", "theirs", "fits"), [
    ("rw", "rw", False), ("rw", "ro", True), ("ro", "rw", False), ("ro", "ro", True),
])  # fmt: skip
def test_agrees_with_qemu_in_both_directions(image: Path, ours: str, theirs: str, fits: bool) -> None:
    # QEMU's own tools that only read a raw image let others write to it
    disk = build(image, read_only=ours == "ro")
    options = ["-r"] if theirs == "ro" else []
    tool = hold(image, *options)
    try:
        if fits:
            with open_disk(disk):
                pass
        else:
            refuse(disk, DiskLockedError)
    finally:
        tool.communicate("quit\n", timeout=20)
    with open_disk(disk):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", *options, "-c", "length", str(image)],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    assert (done.returncode == 0) == fits
    assert fits or "lock" in done.stderr


@needs_qemu_io
def test_an_image_of_a_format_is_locked_by_who_opens_it(image: Path) -> None:
    """QEMU and qemu-storage-daemon lock what they open: our check must not stand in their way."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    disk = build(image, format="qcow2")
    with open_disk(disk):
        tool = hold(image, disk_format="qcow2")
    try:
        refuse(disk, DiskLockedError)
    finally:
        tool.communicate("quit\n", timeout=20)


@needs_qemu_io
@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_a_vhdx_that_a_kill_left_unusable_is_mended(image: Path, cache: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(image), "1M"], check=True)
    with image.open("r+b") as file:
        write_header(file.fileno(), read_header(file.fileno()), b"0123456789abcdef")
        with open_disk(build(image, format="vhdx", read_only=True)):
            assert read_header(file.fileno()).log_guid != bytes(16)
        with open_disk(build(image, format="vhdx", cache=cache)):
            assert read_header(file.fileno()).log_guid == bytes(16)


def test_what_an_encrypting_driver_may_hold(image: Path, tmp_path: Path) -> None:
    key = tmp_path / "disk.key"
    create_key(key)
    disk = build(image, driver="encrypted", key_file=str(key))
    with open_disk(disk) as opened:
        assert opened.descriptors == {"image": opened.descriptor, **opened.others}
        assert opened.others.keys() == {"key"}
        assert os.pread(opened.others["key"], 100, 0) == key.read_bytes()
    key.chmod(0o644)
    with pytest.raises(KeyFileError, match="is open to others"), open_disk(disk):
        pass
    with open_disk(build(image)):
        pass  # it was unlocked


def test_an_image_must_be_whole_units_of_its_encryption(image: Path, tmp_path: Path) -> None:
    key = tmp_path / "disk.key"
    create_key(key)
    os.truncate(image, 4096 + 512)
    disk = build(image, driver="encrypted", key_file=str(key), sector_bytes=4096)
    with pytest.raises(DiskFileError, match="has 4608 bytes, which is no multiple of its sector_bytes, 4096"):
        with open_disk(disk):
            pass


def test_a_disk_without_a_file_has_its_drivers_text(tmp_path: Path) -> None:
    driver = tmp_path / "mine.py"
    driver.write_text("class Mine: pass")
    with open_disk(DiskSpec(driver=str(driver))) as opened:
        assert opened.descriptors.keys() == {"source"}
        assert (opened.descriptor, opened.size_bytes, opened.is_block_device) == (-1, 0, False)
    driver.unlink()
    with pytest.raises(DriverFileError, match="cannot read driver"), open_disk(DiskSpec(driver=str(driver))):
        pass
