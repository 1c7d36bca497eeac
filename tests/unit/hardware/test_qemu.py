"""Asking a QEMU for its abilities: recorded ones, a real one, and binaries that are no good."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.recorded.abilities import VERSIONS, load_abilities
from tests.unit.hardware.fake_qemu import (
    SCHEMA,
    as_output,
    build_answers,
    write_fake_qemu,
    write_script,
)

from duovisor.hardware.errors import QemuUnusableError
from duovisor.hardware.qemu import QemuAbilities, find_qemu
from duovisor.hardware.qemu_probe import parse_answers, probe_qemu
from duovisor.process import ProgramFailedError, ProgramNotFoundError, ProgramTimeoutError

BINARY = Path("/usr/bin/qemu-system-x86_64")


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_abilities_survive_json(version: str) -> None:
    abilities = load_abilities(version)
    assert abilities.version_text.startswith(version)
    assert abilities.q35_machine == f"pc-q35-{version}"
    assert QemuAbilities.from_document(json.loads(json.dumps(asdict(abilities)))) == abilities


def test_abilities_grow_from_release_to_release() -> None:
    old, middle, new = map(load_abilities, VERSIONS)
    assert [q.virtio_blk_queue_reset for q in (old, middle, new)] == [True, True, True]
    assert [q.netdev_stream_reconnect for q in (old, middle, new)] == [False, True, True]
    assert [q.virtio_blk_iothread_vq_mapping for q in (old, middle, new)] == [False, False, True]
    assert [q.reconnect_ms for q in (old, middle, new)] == [False, False, True]
    assert [q.blockdev_set_active for q in (old, middle, new)] == [False, False, True]


@pytest.mark.parametrize(
    "change", [{"colour": "red"}, {"version": 7}, {"version": [7, 2]}, {"device_types": None}]
)
def test_other_documents_are_no_abilities(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"abilities|unpack"):
        QemuAbilities.from_document({**asdict(load_abilities("7.2")), **change})


def test_a_real_qemu_has_the_recorded_abilities_of_its_release() -> None:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("no qemu-system-x86_64 is installed")
    asked = probe_qemu(Path(found))
    assert asked.version >= (7, 2)
    release = ".".join(map(str, asked.version[:2]))
    if release in VERSIONS:
        recorded = replace(load_abilities(release), package=asked.package, version=asked.version)
        assert asked == replace(recorded, io_uring=asked.io_uring)  # the kernel's part


def test_answers_become_abilities() -> None:
    abilities = parse_answers(BINARY, as_output(build_answers()), kernel_io_uring=True)
    assert abilities.version == (7, 2, 1)
    assert (abilities.q35_machine, abilities.q35_cpus_max) == ("pc-q35-7.2", 288)
    assert (abilities.kvm, abilities.tcg) == (False, True)
    assert abilities.io_uring
    assert abilities.seccomp
    assert abilities.netdev_stream
    assert not abilities.netdev_stream_reconnect
    assert not abilities.reconnect_ms


def test_io_uring_needs_the_kernel_too() -> None:
    said = as_output(build_answers())
    assert not parse_answers(BINARY, said, kernel_io_uring=False).io_uring
    without = [entity for entity in SCHEMA if entity["name"] != "3"]
    said = as_output(build_answers(schema=without))
    assert not parse_answers(BINARY, said, kernel_io_uring=True).io_uring


@pytest.mark.parametrize("said", ["", "hello\n", "[]\n", '{"return": {}, "id": "version"}\n'])
def test_something_else_than_qemu(said: str) -> None:
    with pytest.raises(QemuUnusableError, match="does not answer as a QEMU"):
        parse_answers(BINARY, said, kernel_io_uring=True)


def test_a_qemu_without_q35_is_refused() -> None:
    with pytest.raises(QemuUnusableError, match="no q35 machine"):
        parse_answers(BINARY, as_output(build_answers(q35=False)), kernel_io_uring=True)


def test_a_binary_is_asked_once(tmp_path: Path) -> None:
    assert probe_qemu(write_fake_qemu(tmp_path)).package == "fake"
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_missing_binary(tmp_path: Path) -> None:
    with pytest.raises(ProgramNotFoundError, match="No such file") as caught:
        probe_qemu(tmp_path / "qemu-system-x86_64")
    assert caught.value.remedy == "apt install qemu-system-x86"


def test_a_binary_that_may_not_run(tmp_path: Path) -> None:
    binary = write_fake_qemu(tmp_path)
    binary.chmod(0o644)
    with pytest.raises(ProgramNotFoundError, match="Permission denied"):
        probe_qemu(binary)


def test_the_last_words_of_a_binary_that_dies_are_shown(tmp_path: Path) -> None:
    binary = write_script(tmp_path / "qemu", "echo 'libfuse3.so.3: cannot open shared object' >&2; exit 127")
    with pytest.raises(ProgramFailedError, match=r"exited with 127: libfuse3\.so\.3: cannot open"):
        probe_qemu(binary)


def test_a_binary_that_is_killed(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailedError, match="was killed by SIGSEGV"):
        probe_qemu(write_script(tmp_path / "qemu", "kill -SEGV $$"))


def test_a_binary_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(QemuUnusableError, match="does not answer as a QEMU"):
        probe_qemu(write_script(tmp_path / "qemu", "exit 0"))


def test_a_binary_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(ProgramTimeoutError, match=r"within 0\.3 s"):
        probe_qemu(write_script(tmp_path / "qemu", "exec sleep 60"), timeout_s=0.3)


def test_the_environment_names_the_binary(tmp_path: Path) -> None:
    binary = write_fake_qemu(tmp_path)
    assert find_qemu({"PATH": str(tmp_path)}) == binary
    assert find_qemu({"PATH": "", "DUOVISOR_QEMU": str(binary)}) == binary
    assert find_qemu({"PATH": str(tmp_path), "DUOVISOR_QEMU": "qemu-system-x86_64"}) == binary


def test_no_binary_in_path(tmp_path: Path) -> None:
    with pytest.raises(ProgramNotFoundError, match="qemu-system-x86_64 is not in PATH"):
        find_qemu({"PATH": str(tmp_path)})
