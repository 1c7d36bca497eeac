"""The initramfs archive, read back field by field."""

from __future__ import annotations

import stat
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.images import initramfs


class Record(NamedTuple):
    path: str
    mode: int
    data: bytes
    device: tuple[int, int]


def read_archive(archive: bytes) -> list[Record]:
    """What the kernel's init/initramfs.c would make of it, up to and without the trailer."""
    records: list[Record] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[start : start + 8], 16) for start in range(at + 6, at + 110, 8)]
        name_end = at + 110 + numbers[11]
        name = archive[at + 110 : name_end]
        assert name.endswith(b"\0")
        data_start = -(-name_end // 4) * 4
        data_end = data_start + numbers[6]
        if name == b"TRAILER!!!\0":
            return records
        device = (numbers[9], numbers[10])
        records.append(Record(name[:-1].decode(), numbers[1], archive[data_start:data_end], device))
        at = -(-data_end // 4) * 4


def test_each_kind_of_entry_is_written() -> None:
    archive = initramfs.build_archive([
        initramfs.build_folder("bin"),
        initramfs.build_file("/bin/run", b"#!/bin/sh", executable=True),
        initramfs.build_file("etc", b""),
        initramfs.build_link("bin/sh", "busybox"),
        initramfs.build_character_device("dev/console", 5, 1),
    ])  # fmt: skip
    assert read_archive(archive) == [
        Record("bin", stat.S_IFDIR | 0o755, b"", (0, 0)),
        Record("bin/run", stat.S_IFREG | 0o755, b"#!/bin/sh", (0, 0)),
        Record("etc", stat.S_IFREG | 0o644, b"", (0, 0)),
        Record("bin/sh", stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        Record("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=9))))
def test_any_content_reads_back(files: list[tuple[str, bytes]]) -> None:
    archive = initramfs.build_archive([initramfs.build_file(name, data) for name, data in files])
    assert [(record.path, record.data) for record in read_archive(archive)] == files


def test_same_content_gives_the_same_bytes() -> None:
    entries = [initramfs.build_folder("a"), initramfs.build_file("a/b", b"c")]
    assert initramfs.build_archive(entries) == initramfs.build_archive(entries)
