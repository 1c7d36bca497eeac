"""fio's command lines and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.images.fake_guest import Answer, start_guest

from duovisor.controlling.images import storage_jobs
from duovisor.controlling.images.errors import StorageJobError
from duovisor.controlling.images.probe_client import connect_probe

RECORDED = (Path(__file__).parent / "fio-3.33.txt").read_bytes()  # read_4k_qd32 and read_1m_qd4
COMPLAINT = b"""\
verify: bad magic header 0, wanted acca at file /dev/vda offset 20480000, length 16384
fio: pid=139, err=84/file:io_u.c:2190, func=io_u_queued_complete, error=Invalid
{ "jobs": [] }
"""


def make_report(command: str) -> bytes:
    names = [word.removeprefix("--name=") for word in command.split() if word.startswith("--name=")]
    job = '{"jobname": "%s", "error": 0, "read": {"iops": 10.5, "bw_bytes": 2097152}, "write": %s}'
    jobs = ",".join(job % (name, '{"iops": 0, "bw_bytes": 0}') for name in names)
    return f'note: fio talks\n{{"jobs": [{jobs}]}}\n'.encode()


def test_recorded_report_is_read() -> None:
    results = storage_jobs.parse_report(RECORDED)
    assert results["read_4k_qd32"].iops == pytest.approx(6017.82, abs=0.01)
    assert results["read_1m_qd4"].mib_s == pytest.approx(2478.13, abs=0.01)
    assert results["read_1m_qd4"].error == 0


@pytest.mark.parametrize("output", [b"", b"fio: unrecognized option", b"{}", b"{ cut", b'{"jobs": [{}]}'])
def test_what_is_no_report_is_told_in_fios_words(output: bytes) -> None:
    with pytest.raises(StorageJobError, match="fio gave no report but said"):
        storage_jobs.parse_report(output)


def test_job_command() -> None:
    command = storage_jobs.build_job_command(storage_jobs.JOBS[:1], "/dev/vda", runtime_s=2, size_mib=128)
    assert command == (
        "fio --output-format=json --filename=/dev/vda --direct=1 --ioengine=libaio --thread --gtod_reduce=1"
        " --norandommap --time_based --runtime=2000ms --ramp_time=500ms --size=128m"
        " --name=read_4k_qd1 --stonewall --rw=randread --bs=4k --iodepth=1"
    )


def test_one_fio_can_run_every_job_in_turn() -> None:
    command = storage_jobs.build_job_command(storage_jobs.JOBS, "/dev/vda", runtime_s=0.5)
    assert command.count("--stonewall") == len(storage_jobs.JOBS)
    assert "--size" not in command


def test_second_verification_writes_nothing() -> None:
    write, read = storage_jobs.build_verify_commands("/dev/vda", seed=5)
    assert "--verify=crc32c" in write
    assert "--randseed=5" in write
    assert read == f"{write} --verify_only=1"


def test_fill_command() -> None:
    assert "--rw=write --bs=1m" in storage_jobs.build_fill_command("/dev/vda", 64)


def test_job_names_and_figures_are_those_of_the_model() -> None:
    fields = set(storage_jobs.StorageFigures.model_fields)
    assert {job.figure for job in storage_jobs.JOBS} | {"verify"} == fields


async def test_run_jobs_verifies_and_measures(tmp_path: Path) -> None:
    seen: list[str] = []
    async with (
        start_guest(tmp_path / "s", lambda command: Answer(0, make_report(command))) as heard,
        connect_probe(tmp_path / "s") as client,
    ):
        figures = await storage_jobs.run_jobs(client, "/dev/vda", runtime_s=1, progress=seen.append)
    assert figures.verify == "ok"
    assert figures.read_4k_qd1_iops == 10.5
    assert figures.read_1m_qd4_mib_s == 2.0
    assert seen == ["verify", *(job.name for job in storage_jobs.JOBS)]
    assert len(heard) == 2 + len(storage_jobs.JOBS)


async def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    async with (
        start_guest(tmp_path / "s", lambda command: Answer(1, COMPLAINT)),
        connect_probe(tmp_path / "s") as client,
    ):
        verdict = await storage_jobs.run_verify(client, "/dev/vda")
    assert verdict.startswith("verify: bad magic header 0")


async def test_two_verifications_use_different_seeds(tmp_path: Path) -> None:
    async with (
        start_guest(tmp_path / "s", lambda command: Answer(0, make_report(command))) as heard,
        connect_probe(tmp_path / "s") as client,
    ):
        assert await storage_jobs.run_verify(client, "/dev/vda") == "ok"
        assert await storage_jobs.run_verify(client, "/dev/vda") == "ok"
    assert heard[0] != heard[2]


async def test_fio_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    answer = Answer(1, b"fio: io_u error on file /dev/vda: Input/output error: read offset=0\n")
    async with start_guest(tmp_path / "s", lambda command: answer), connect_probe(tmp_path / "s") as client:
        with pytest.raises(StorageJobError, match="Input/output error"):
            await storage_jobs.run_job(client, "/dev/vda", storage_jobs.JOBS[0], runtime_s=1)
