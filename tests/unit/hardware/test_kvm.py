"""The KVM probe: its guest, what can go wrong with it, and this machine's own ``/dev/kvm``."""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.hardware.recorded_hosts import HOSTS, load_probe

from duovisor.hardware import kvm_guest
from duovisor.hardware.host import read_host
from duovisor.hardware.kvm import (
    DEV_KVM,
    GUEST,
    INTERPRETED_NS,
    KvmProbe,
    KvmState,
    build_permission_remedy,
    find_obstacle,
    judge,
    probe_kvm,
)
from duovisor.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator

NULL = Path("/dev/null")  # a device that can be opened, for guests that do not look at it
NOBODY = 65534


def say(text: str) -> tuple[str, ...]:
    """A guest's runner that only prints."""
    return ("/bin/sh", "-c", f"echo '{text}'")


def test_this_machine_is_judged_the_same_twice() -> None:
    first, second = probe_kvm(), probe_kvm()
    assert first.state is second.state
    assert (first.ns_per_iteration is None) == (first.state not in (KvmState.WORKS, KvmState.INTERPRETED))
    if first.ns_per_iteration is not None:
        assert (first.ns_per_iteration > INTERPRETED_NS) == (first.state is KvmState.INTERPRETED)
    if first.state is KvmState.WORKS:
        assert read_host().processors.extension in ("vmx", "svm")
    if not DEV_KVM.exists():
        assert first.state is KvmState.ABSENT


def test_hardware_is_told_from_an_interpreter() -> None:
    assert judge(0.31).state is KvmState.WORKS
    assert judge(20.0).state is KvmState.WORKS  # hardware that TCG emulates
    interpreted = judge(812.4)
    assert interpreted.state is KvmState.INTERPRETED
    assert interpreted.reason == (
        "KVM answers but interprets guest code: 812 ns per loop iteration, hardware needs about 1"
    )
    assert interpreted.remedy


def test_no_device(tmp_path: Path) -> None:
    probe = probe_kvm(tmp_path / "kvm")
    assert probe.state is KvmState.ABSENT
    assert probe.reason == f"there is no {tmp_path}/kvm"
    assert "modprobe" in probe.remedy


def test_a_file_is_not_a_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert probe_kvm(tmp_path / "kvm").state is KvmState.ABSENT


@pytest.fixture
def closed_device() -> Iterator[Path]:
    """A device that this process, as an unprivileged user, may not open."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        for path in map(Path, ("/dev/kvm", "/dev/mem", "/dev/console", "/dev/port", "/dev/loop-control")):
            if path.exists() and stat.S_ISCHR(path.stat().st_mode) and not can_open(path):
                yield path
                return
        pytest.skip("this host has no device that is closed to users")
    finally:
        if was_root:
            os.seteuid(0)


def can_open(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_no_permission(closed_device: Path) -> None:
    probe = find_obstacle(closed_device)
    assert probe is not None
    assert probe.state is KvmState.NO_PERMISSION
    assert f"may not open {closed_device}" in probe.reason
    assert "run as root" in probe.remedy


def test_the_remedy_follows_the_mode() -> None:
    assert "join group 104" in build_permission_remedy(0o660, 104)
    assert "give /dev/kvm to group kvm" in build_permission_remedy(0o600, 0)


def test_a_device_that_is_not_kvm_refuses() -> None:
    probe = probe_kvm(NULL)
    assert probe.state is KvmState.REFUSED
    assert "ENOTTY" in probe.reason


def test_a_guest_that_hangs_is_killed_in_time() -> None:
    begin = time.monotonic()
    probe = probe_kvm(NULL, guest=("/bin/sh", "-c", "exec sleep 60"), deadline_s=0.3)
    assert time.monotonic() - begin < 10
    assert probe.state is KvmState.REFUSED
    assert "did not end within 0.3 s" in probe.reason


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        (("/bin/sh", "-c", "kill -9 $$"), "SIGKILL"),
        (("/bin/sh", "-c", "echo kvm: no space >&2; exit 3"), "exited with 3: kvm: no space"),
        (say("nonsense"), "the probe died"),
        (say("[]"), "the probe died"),
        (say('{"refused": "KVM left the guest with exit shutdown"}'), "exit shutdown"),
    ],
)
def test_a_probe_that_dies_or_refuses(guest: tuple[str, ...], words: str) -> None:
    probe = probe_kvm(NULL, guest=guest)
    assert probe.state is KvmState.REFUSED
    assert words in probe.reason


def test_a_measured_guest_is_judged() -> None:
    assert probe_kvm(NULL, guest=say('{"ns_per_iteration": 0.4}')).state is KvmState.WORKS
    assert probe_kvm(NULL, guest=say('{"ns_per_iteration": 700}')).state is KvmState.INTERPRETED


def test_the_guest_needs_nothing_of_duovisor() -> None:
    said = run((sys.executable, "-I", "-S", str(GUEST), "/dev/null"), env={}, timeout_s=30)
    assert json.loads(said) == {"refused": "ENOTTY: Inappropriate ioctl for device"}


class Machine:
    """A guest whose loop takes a fixed time more, and far more the first time."""

    def __init__(self, ns_per_iteration: float, fixed_ns: int, first_ns: int = 0) -> None:
        self.ns_per_iteration = ns_per_iteration
        self.fixed_ns = fixed_ns
        self.first_ns = first_ns

    def run_loop(self, iterations: int) -> int:
        first_ns, self.first_ns = self.first_ns, 0
        return first_ns + self.fixed_ns + round(iterations * self.ns_per_iteration)


@pytest.mark.parametrize("ns_per_iteration", [0.25, 3.3, 20.0, 660.0])
@pytest.mark.parametrize(("fixed_ns", "first_ns"), [(2_000, 50_000), (138_000, 6_000_000), (2_000_000, 0)])
def test_entering_and_leaving_is_not_taken_for_the_loop(
    ns_per_iteration: float, fixed_ns: int, first_ns: int
) -> None:
    machine = Machine(ns_per_iteration, fixed_ns, first_ns)
    assert kvm_guest.measure(machine.run_loop) == pytest.approx(ns_per_iteration, rel=0.01)


def test_a_busy_host_does_not_make_an_interpreter() -> None:
    machine = Machine(0.3, 2_000)
    busy = iter([0, 0, 0, 5_000_000] * 1000)
    assert kvm_guest.measure(lambda n: machine.run_loop(n) + next(busy)) == pytest.approx(0.3, rel=0.01)


def test_the_guest_begins_in_64_bit_mode() -> None:
    sregs = kvm_guest.build_sregs(bytes(312))
    assert len(sregs) == 312
    cr0, cr3, cr4 = (struct.unpack_from("<Q", sregs, offset)[0] for offset in (224, 240, 248))
    assert cr0 & 1 << 31
    assert cr0 & 1
    assert (cr3, cr4) == (kvm_guest.PML4, 1 << 5)
    assert struct.unpack_from("<Q", sregs, kvm_guest.EFER_OFFSET)[0] == 1 << 8 | 1 << 10
    long_mode, default_size = sregs[19], sregs[17]  # kvm_segment.l and .db of cs
    assert (long_mode, default_size) == (1, 0)


def test_the_guests_pages_map_onto_themselves() -> None:
    with mmap.mmap(-1, kvm_guest.MEMORY_BYTES) as memory:
        kvm_guest.fill_memory(memory)
        assert memory[kvm_guest.CODE : kvm_guest.CODE + 7] == b"\xff\xc9\x75\xfc\xe6\x80\xf4"
        entries = [struct.unpack_from("<Q", memory, at)[0] for at in (0x1000, 0x2000, 0x3000)]
        assert entries == [0x2003, 0x3003, 0x83]


@pytest.mark.parametrize("name", HOSTS)
def test_a_probe_survives_json(name: str) -> None:
    probe = load_probe(name)
    assert KvmProbe.from_document(json.loads(json.dumps(asdict(probe)))) == probe


@pytest.mark.parametrize(
    "document", [{}, {"state": "dancing", "reason": ""}, {"state": "works", "colour": 1}]
)
def test_other_documents_are_no_probe(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"KVM probe|KvmState"):
        KvmProbe.from_document(document)
