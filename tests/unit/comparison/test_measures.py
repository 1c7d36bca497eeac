"""What is read out of the guest's, fio's, iperf3's and the kernel's words."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.comparison.errors import MeasureError
from duovisor.comparison.load import build_load_command, parse_load
from duovisor.comparison.measures.authority import read_authority
from duovisor.comparison.measures.code import count_lines
from duovisor.comparison.measures.network import parse_report as parse_iperf
from duovisor.comparison.measures.processor import parse_count
from duovisor.comparison.measures.storage import build_command, parse_report
from duovisor.comparison.plan import NETWORK_JOBS, STORAGE_JOBS
from duovisor.comparison.processes import (
    VmProcess,
    read_code_bytes,
    read_processor_by_role,
    read_processor_ns,
    read_pss_kib,
)

if TYPE_CHECKING:
    from pathlib import Path

READ = next(job for job in STORAGE_JOBS if job.name == "read_4k_qd32")
FSYNC = next(job for job in STORAGE_JOBS if job.fsync)
PERCENTILES = {"50.000000": 210_000, "99.000000": 900_000, "99.900000": 2_400_000}


def build_side(**changed: Any) -> dict[str, Any]:
    return {
        "iops": 4000.5, "bw_bytes": 4000 * 4096, "total_ios": 4000, "clat_ns": {"percentile": PERCENTILES}
    } | changed  # fmt: skip


def print_fio(**changed: Any) -> str:
    job = {"jobname": "any", "error": 0, "read": build_side(), "write": build_side(iops=1.0),
           "sync": {"lat_ns": {"percentile": PERCENTILES}}} | changed  # fmt: skip
    return "note: both iodepth >= 1\n" + json.dumps({"fio version": "fio-3.33", "jobs": [job]})


def test_a_read_job() -> None:
    values = parse_report(print_fio(), READ)
    assert values == {
        "iops": 4000.5, "mib_s": 15.625, "p50_us": 210.0, "p99_us": 900.0, "p99_9_us": 2400.0
    }  # fmt: skip


def test_a_job_that_flushes_is_measured_by_its_flushes() -> None:
    values = parse_report(print_fio(write=build_side(iops=310.0)), FSYNC)
    assert values == {"fsyncs_per_s": 310.0, "p50_us": 210.0, "p99_us": 900.0, "p99_9_us": 2400.0}


@pytest.mark.parametrize("printed", ["", "fio: failed to open /dev/vdz", "{}", '{"jobs": []}', "{ nothing"])
def test_fio_without_a_report(printed: str) -> None:
    with pytest.raises(MeasureError, match="gave no report"):
        parse_report(printed, READ)


def test_fio_with_an_error() -> None:
    with pytest.raises(MeasureError, match="error 5 in read_4k_qd32"):
        parse_report(print_fio(error=5), READ)


def test_each_job_says_what_it_is_for() -> None:
    commands = [build_command(job, "/dev/vda", 1.5) for job in STORAGE_JOBS]
    assert all("--direct=1" in command and "--runtime=1500ms" in command for command in commands)
    assert sum("--fsync=1" in command for command in commands) == 1
    assert len(set(commands)) == len(STORAGE_JOBS)


def print_load(*, longest_ms: float = 12.5, reader: int = 0, writer: int = 0, words: str = "") -> str:
    jobs = [
        {"jobname": "reader", "error": reader, "read": {"clat_ns": {"max": longest_ms * 1e6}}},
        {"jobname": "writer", "error": writer, "read": {"clat_ns": {"max": 9e9}}},
    ]
    return words + json.dumps({"jobs": jobs})


def test_the_longest_read_is_what_the_guest_felt() -> None:
    assert parse_load(0, print_load()) == (12.5, "")


def test_damage_and_errors_are_told() -> None:
    damaged = print_load(writer=84, words="crc32c: verify failed at file /dev/vda offset 4096\n")
    said = parse_load(1, damaged).complaint
    assert said == "writer: error 84; crc32c: verify failed at file /dev/vda offset 4096"
    assert parse_load(0, print_load(reader=5)).complaint == "reader: error 5"
    assert parse_load(1, print_load()).complaint == "fio ended with 1"
    with pytest.raises(MeasureError, match="Segmentation"):
        parse_load(139, "Segmentation fault")


def test_the_writer_writes_for_as_long_as_the_reader_reads() -> None:
    command = build_load_command("/dev/vda", 2.0)
    assert "--size=1600k" in command  # 200 blocks a second, for 2 s
    assert "--runtime=2000ms" in command


TCP = {"end": {"sum_received": {"bits_per_second": 9.1e8, "bytes": 2.0e8}}}
UDP = {"end": {"sum": {"packets": 21000, "lost_packets": 1000, "seconds": 2.0}}}


def test_iperf3() -> None:
    assert parse_iperf(json.dumps(TCP).encode(), NETWORK_JOBS[0]) == (910.0, 200.0)
    assert parse_iperf(json.dumps(UDP).encode(), NETWORK_JOBS[2]) == (10000.0, 20000.0)


@pytest.mark.parametrize("output", [b"", b"{}", b'{"error": "unable to connect"}', json.dumps(UDP).encode()])
def test_iperf3_without_a_report(output: bytes) -> None:
    with pytest.raises(MeasureError, match="iperf3"):
        parse_iperf(output, NETWORK_JOBS[0])


def test_the_loop_of_the_control() -> None:
    assert parse_count("80 100\n") == 16000.0
    for wrong in ("", "80 0", "many 3"):
        with pytest.raises(MeasureError):
            parse_count(wrong)


def write_thread(proc: Path, pid: int, thread: int, nanoseconds: int) -> None:
    folder = proc / str(pid) / "task" / str(thread)
    folder.mkdir(parents=True)
    (folder / "schedstat").write_text(f"{nanoseconds} 58897 1\n")


def test_processor_time_is_that_of_all_threads(tmp_path: Path) -> None:
    write_thread(tmp_path, 7, 7, 1000)
    write_thread(tmp_path, 7, 8, 500)
    write_thread(tmp_path, 9, 9, 30)
    assert read_processor_ns(7, tmp_path) == 1500
    assert read_processor_ns(1, tmp_path) == 0
    processes = [VmProcess("vmm", 7), VmProcess("driver", 9), VmProcess("driver", 9)]
    assert read_processor_by_role(processes, tmp_path) == {"vmm": 1500, "driver": 60}


SMAPS = """\
7f0000000000-7f0010000000 rw-s 00000000 00:1b 4242 /guest/memory
Size:             262144 kB
Pss:               90000 kB
7f0020000000-7f0020100000 r-xp 00000000 08:01 77 /usr/bin/qemu
Size:               1024 kB
Pss:                 300 kB
"""
MAPS = """\
00400000-00500000 r-xp 00000000 08:01 77 /usr/bin/qemu
00500000-00600000 r--p 00000000 08:01 77 /usr/bin/qemu
7f0000000000-7f0000001000 r-xp 00000000 00:00 0 [vdso]
7f0020000000-7f0020080000 r-xp 00000000 08:01 78 /usr/lib/libc.so.6
7f0030000000-7f0031000000 rwxp 00000000 00:00 0
"""


def test_memory_without_the_guest_s(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/smaps").write_text(SMAPS)
    assert read_pss_kib(7, 4242, tmp_path) == (90300, 90000)
    assert read_pss_kib(7, 1, tmp_path) == (90300, 0)


def test_code_is_what_is_mapped_from_files_and_can_be_executed(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/maps").write_text(MAPS)
    assert read_code_bytes(7, tmp_path) == 0x100000 + 0x80000


def test_authority_of_this_very_process() -> None:
    authority = read_authority(os.getpid())
    assert authority["own_namespaces"] == []
    assert sum(authority["descriptors"].values()) > 0
    assert read_authority(2**22 + 1) == {}


def test_descriptors_are_told_by_what_they_lead_to() -> None:
    before = read_authority(os.getpid())["descriptors"]
    memory = os.memfd_create("guest")
    nowhere = os.open("/dev/null", os.O_RDWR)
    try:
        after = read_authority(os.getpid())["descriptors"]
    finally:
        os.close(nowhere)
        os.close(memory)
    assert after == {**before, "memory file": before.get("memory file", 0) + 1}


def test_lines_that_are_neither_empty_nor_comments(tmp_path: Path) -> None:
    (tmp_path / "controlling/drivers").mkdir(parents=True)
    (tmp_path / "controlling/a.py").write_text("import os\n\n# a comment\nprint(os)\n")
    (tmp_path / "controlling/drivers/b.py").write_text("x = 1\n")
    assert count_lines(("controlling",), tmp_path) == 2
    assert count_lines(("controlling/drivers",), tmp_path) == 1
