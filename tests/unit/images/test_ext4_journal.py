"""A journal that was not replayed: written by debugfs, read here as e2fsck would have replayed it."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duovisor.controlling.images.disk_reader import DiskReadError, open_reader
from duovisor.controlling.images.ext4 import Ext4
from duovisor.controlling.images.ext4_journal import MAGIC, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "/boot/grub/grub.cfg"
OLD, NEW = b"old", b"new"
RECOVER_AT, RECOVER = 1024 + 96, 4

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "debugfs", "e2fsck"))), reason="e2fsprogs is not installed"
)


def make_disk(folder: Path, *options: str, block: int = 4096) -> Path:
    (folder / "root/boot/grub").mkdir(parents=True)
    (folder / "root/boot/grub/grub.cfg").write_bytes(OLD.ljust(block, b"."))
    disk = folder / "disk"
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(block), *options, "-d", folder / "root", disk, "16m"],
        check=True,
    )
    return disk


def find_block(disk: Path) -> int:
    command = ["debugfs", "-R", f"blocks {FILE}", str(disk)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])


def log(disk: Path, *commands: str) -> None:
    """Write to the journal, and leave it so."""
    script = disk.parent / "script"
    for command in commands:
        script.write_text(
            "\n".join(("jo -c" if command.startswith("csum ") else "jo", command.removeprefix("csum "), "jc"))
        )
        subprocess.run(["debugfs", "-w", "-f", script, disk], check=True, capture_output=True)


def read(disk: Path) -> bytes:
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        system = Ext4(open_reader(descriptor), 0)
        number = system.find(FILE)
        assert number is not None
        return system.read_file(number, 1 << 20)
    finally:
        os.close(descriptor)


def replay(disk: Path) -> None:
    subprocess.run(["e2fsck", "-fy", disk], capture_output=True)
    assert not disk.read_bytes()[RECOVER_AT] & RECOVER


@pytest.mark.parametrize(
    ("options", "block"), [((), 4096), (("-O", "^64bit,^metadata_csum"), 1024), (("-O", "^64bit"), 2048)]
)
@pytest.mark.parametrize("checked", ["", "csum "])
def test_what_is_in_the_journal_counts(
    tmp_path: Path, options: tuple[str, ...], block: int, checked: str
) -> None:
    disk = make_disk(tmp_path, *options, block=block)
    number = find_block(disk)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(NEW.ljust(block, b"."))
    second.write_bytes(MAGIC.to_bytes(4).ljust(block, b"."))  # what a journal cannot hold as it is
    assert read(disk).startswith(OLD)
    log(disk, f"{checked}jw -b {number} {first}")
    assert disk.read_bytes()[RECOVER_AT] & RECOVER
    assert read(disk) == first.read_bytes()
    log(disk, f"jw -b {number} {second}")
    assert read(disk) == second.read_bytes()
    replay(disk)
    assert read(disk) == second.read_bytes()


def test_what_was_revoked_does_not(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    number = find_block(disk)
    (tmp_path / "new").write_bytes(NEW.ljust(4096, b"."))
    log(disk, f"jw -b {number} {tmp_path}/new", f"jw -r {number}")
    assert read(disk).startswith(OLD)
    log(disk, f"jw -b {number} {tmp_path}/new")
    assert read(disk).startswith(NEW)


def test_nor_what_was_not_committed(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    number = find_block(disk)
    (tmp_path / "new").write_bytes(NEW.ljust(4096, b"."))
    (tmp_path / "newer").write_bytes(b"newer".ljust(4096, b"."))
    # -c: without its commit block
    log(disk, f"jw -b {number} {tmp_path}/new", f"jw -c -b {number} {tmp_path}/newer")
    assert read(disk) == (tmp_path / "new").read_bytes()


@pytest.fixture(scope="module")
def journaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("journal")
    disk = make_disk(folder)
    (folder / "new").write_bytes(NEW.ljust(4096, b"."))
    log(disk, f"jw -b {find_block(disk)} {folder}/new", "jw -r 1")
    with disk.open("r+b") as file:
        yield file.fileno()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_journal_is_trusted(journaled: int, data: st.DataObject) -> None:
    """The parts of it that say what is where, overwritten with anything: an answer or an error, and soon."""
    with mmap.mmap(journaled, 0, access=mmap.ACCESS_READ) as content:
        journal = content.find(MAGIC.to_bytes(4))
        place = journal + data.draw(st.sampled_from([0, 1, 3, 4])) * 4096 + data.draw(st.integers(0, 64))
        garbage = data.draw(st.binary(min_size=1, max_size=32))
        was = content[place : place + len(garbage)]
    os.pwrite(journaled, garbage, place)
    with contextlib.suppress(DiskReadError):
        Ext4(open_reader(journaled), 0)
    os.pwrite(journaled, was, place)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=48), max_size=24), st.integers(1, 2000), st.integers(0, 2000))
def test_a_journal_of_anything_comes_to_its_end(parts: list[bytes], length: int, start: int) -> None:
    read_blocks: list[int] = []
    blocks = [
        (MAGIC.to_bytes(4) + bytes((0, 0, 0, len(part) % 6, 0, 0, 0, 1)) + part).ljust(1024, b"\0")
        for part in parts
    ]
    head = [MAGIC, 4, 0, 1024, length, 1, 1, start, 0, 0, 3]
    superblock = b"".join(word.to_bytes(4) for word in head).ljust(1024, b"\0")

    def read_block(number: int) -> bytes:
        read_blocks.append(number)
        return superblock if not number else blocks[number % len(blocks)] if blocks else bytes(1024)

    with contextlib.suppress(DiskReadError):
        assert len(read_journal(read_block, 2000)) <= 2000
    assert len(read_blocks) <= 2001
