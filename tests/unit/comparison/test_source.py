"""QEMU's source: which files can be in the program, what is a line, and how apt is asked for it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from tests.unit.comparison.synthetic import build_store

from duovisor.comparison.errors import SourceError
from duovisor.comparison.report.result import build_result, to_document
from duovisor.comparison.report.tables import build_code
from duovisor.comparison.source_lines import (
    BLOCK,
    COUNT,
    DEVICES,
    NETWORK,
    PROCESSORS,
    REST,
    SourceCount,
    classify,
    count_archive,
    count_lines,
    load_count,
)
from duovisor.comparison.source_package import ask_for_source, count_source


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("hw/block/virtio-blk.c", DEVICES),
        ("hw/i386/pc_q35.c", DEVICES),
        ("hw/arm/virt.c", ""),
        ("include/hw/virtio/virtio.h", DEVICES),
        ("include/standard-headers/linux/virtio_ids.h", ""),
        ("block/qcow2.c", BLOCK),
        ("blockdev.c", BLOCK),
        ("net/tap.c", NETWORK),
        ("target/i386/cpu.c", PROCESSORS),
        ("target/ppc/cpu.c", ""),
        ("tcg/i386/tcg-target.c.inc", PROCESSORS),
        ("tcg/aarch64/tcg-target.c.inc", ""),
        ("tcg/tcg.c", PROCESSORS),
        ("accel/kvm/kvm-all.c", PROCESSORS),
        ("migration/ram.c", REST),
        ("util/iov.c", REST),
        ("tests/unit/test-iov.c", ""),
        ("linux-user/main.c", ""),
        ("docs/index.rst", ""),
        ("meson.build", ""),
    ],
)
def test_what_a_file_is_for(path: str, kind: str) -> None:
    assert classify(PurePosixPath(path)) == kind


def test_empty_lines_and_comments_are_not_counted() -> None:
    text = """
/* one
 * two
 */
#include <a.h>

// three
int a; /* four */
/* five */ int b;
/* six */
int c; /* seven
eight */ int d;
"""
    assert count_lines(text.splitlines()) == 4 + 1  # "eight */ int d;" has code, as far as a line can tell


def write_archive(path: Path) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name, text in (
            ("qemu-7.2/hw/a.c", "int a;\nint b;\n"),
            ("qemu-7.2/block/b.c", "int c;\n"),
            ("qemu-7.2/tests/t.c", "int d;\n"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def test_an_archive_is_counted_by_what_its_files_are_for(tmp_path: Path) -> None:
    write_archive(tmp_path / "qemu.orig.tar.xz")
    assert count_archive(tmp_path / "qemu.orig.tar.xz") == {DEVICES: 2, BLOCK: 1}


def test_apt_is_asked_for_sources_in_both_of_its_formats() -> None:
    lines = "# deb of old\ndeb [signed-by=/k] http://a bookworm main\ndeb-src http://a bookworm main\n"
    asked = "# deb of old\ndeb-src [signed-by=/k] http://a bookworm main\ndeb-src http://a bookworm main\n"
    assert ask_for_source(lines) == asked
    block = "Types: deb\nURIs: http://a\nSuites: bookworm\n"
    assert ask_for_source(block) == "Types: deb-src\nURIs: http://a\nSuites: bookworm\n"


def test_what_was_counted_is_in_the_report(tmp_path: Path) -> None:
    without = build_code(build_result(build_store(tmp_path)))
    assert "--count-source" in without
    count = SourceCount(package="qemu 1:7.2", lines={DEVICES: 300_000, BLOCK: 60_000, NETWORK: 12_000})
    (tmp_path / COUNT).write_text(count.model_dump_json())
    result = build_result(build_store(tmp_path))
    told = build_code(result)
    assert "(qemu 1:7.2, before the distribution's patches) has 372,000 lines of C" in told
    assert "device models 300,000, block layer 60,000 and network back ends 12,000" in told
    assert "72,000 lines, have nothing of the host to work on" in told
    assert (
        to_document(result, {row.quantity.key: "" for row in result.rows}, [])["source"] == count.model_dump()
    )


def test_a_count_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / COUNT).write_text("{}")
    assert load_count(tmp_path) is None


def test_without_the_tools_of_the_distribution_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="only the packages of Debian and Ubuntu") as caught:
        count_source(tmp_path, print)
    assert "leave --count-source out" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
