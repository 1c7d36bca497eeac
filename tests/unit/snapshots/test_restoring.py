"""Disks come back all together or not at all, wherever it is interrupted; what does not fit is refused."""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.disk_lock import lock_disk
from duovisor.controlling.errors import DiskLockedError
from duovisor.controlling.snapshots.documents import SavedDisk, Snapshot
from duovisor.controlling.snapshots.errors import SnapshotBrokenError, SnapshotRefusedError
from duovisor.controlling.snapshots.restoring import (
    bring_disks_back,
    check_disks,
    check_files,
    check_processors,
    settle,
)
from duovisor.controlling.snapshots.taking import check_vm
from duovisor.hardware.processors import Processors
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.spec.vm import VirtualMachineSpec

BYTES = 8192
STEPS = ("open", "os.rename", "os.remove", "os.truncate", "fcntl.ioctl", "os.chown", "os.chmod")


def build_processors(**changes: object) -> Processors:
    values = {
        "vendor": "AuthenticAMD", "model": "EPYC 7B13", "sockets": 1, "cores": 2, "threads": 4,
        "extension": "svm", "nested_paging": True, "nested_kvm": None, "is_virtual": False,
        "flags": ("avx", "sse"), **changes,
    }  # fmt: skip
    return Processors(**values)  # type: ignore[arg-type]  # as the test says


class Case:
    """A VM with two disks, each with other content than in its snapshot ``one``; a third is read-only."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "snapshots"
        saved = self.folder / "one"
        saved.mkdir(parents=True)
        self.disks = [root / f"disk{index}.raw" for index in range(3)]
        for index, disk in enumerate(self.disks):
            disk.write_bytes(b"now" + bytes(BYTES - 3))
            disk.chmod(0o640)
            (saved / f"disk{index}").write_bytes(b"then" + bytes(BYTES - 4))
        (saved / "memory").write_bytes(b"")
        os.truncate(saved / "memory", 64 << 20)
        (saved / "state").write_text("{}")
        document = {
            "name": "vm", "memory_mib": 64,
            "disks": [{"path": str(disk), "read_only": disk is self.disks[2]} for disk in self.disks],
        }  # fmt: skip
        self.spec: VirtualMachineSpec = build_spec(document)
        read_only = self.disks[2].stat()
        self.snapshot = Snapshot(
            name="one", created_at=datetime.now(UTC), spec=self.spec, vendor="AuthenticAMD",
            processor="EPYC 7B13", flags=("avx", "sse"), memory_bytes=4096, pause_ms=1.5,
            disks=(
                SavedDisk(name="disk0", file="disk0", size_bytes=BYTES),
                SavedDisk(name="disk1", file="disk1", size_bytes=BYTES),
                SavedDisk(name="disk2", file=None, size_bytes=BYTES, changed_ns=read_only.st_mtime_ns),
            ),
        )  # fmt: skip

    def bring_back(self) -> None:
        bring_disks_back(self.folder, self.snapshot, self.spec, lambda count: None)

    def read(self) -> list[str]:
        """How each disk begins."""
        return [disk.read_bytes().rstrip(b"\0").decode() for disk in self.disks]

    def find_leftovers(self) -> list[str]:
        files = [path.name for path in (*self.disks[0].parent.iterdir(), *self.folder.iterdir())]
        return [name for name in files if name.startswith(".")]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_disks_have_what_they_had(case: Case) -> None:
    case.bring_back()
    assert case.read() == ["then", "then", "now"]
    assert case.find_leftovers() == []
    assert case.disks[0].stat().st_mode & 0o777 == 0o640


def kill_at(case: Case, step: int) -> bool:
    """Bring the disks back in a child that is killed at the given step; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        left = step

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        case.bring_back()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_killed_at_each_step_it_is_all_or_nothing(tmp_path: Path) -> None:
    outcomes = set()
    for step in range(1, 1000):
        root = tmp_path / str(step)
        root.mkdir()
        case = Case(root)
        killed = kill_at(case, step)
        settle(case.folder)
        outcome = case.read()[:2]
        assert outcome in (["now", "now"], ["then", "then"]), step
        assert case.find_leftovers() == [], step
        outcomes.add(tuple(outcome))
        case.bring_back()  # and it can be done again
        assert (case.read()[:2], case.find_leftovers()) == (["then", "then"], [])
        if not killed:
            break
    assert step > 15
    assert len(outcomes) == 2


def test_a_disk_in_use_is_left_alone(case: Case) -> None:
    with case.disks[1].open("r+b") as user:
        lock_disk(user.fileno(), "disk1", read_only=False)
        with pytest.raises(DiskLockedError):
            case.bring_back()
    assert case.read() == ["now"] * 3
    assert case.find_leftovers() == []


def test_another_processor_is_refused(case: Case) -> None:
    check_processors(case.snapshot, build_processors(flags=("avx", "sse", "new")))
    with pytest.raises(SnapshotRefusedError, match=r"taken on EPYC 7B13; this host has Xeon"):
        check_processors(case.snapshot, build_processors(vendor="GenuineIntel", model="Xeon"))
    with pytest.raises(SnapshotRefusedError, match="do not offer avx any more"):
        check_processors(case.snapshot, build_processors(flags=("sse",)))


def test_a_disk_that_is_not_what_it_was_is_refused(case: Case) -> None:
    check_disks(case.snapshot, case.spec)
    os.utime(case.disks[2], ns=(1, 1))
    with pytest.raises(SnapshotRefusedError, match=r"disk2: .* read-only, was changed since snapshot one"):
        check_disks(case.snapshot, case.spec)
    os.truncate(case.disks[0], 2 * BYTES)
    with pytest.raises(SnapshotRefusedError, match=r"disk0: .* has 16384 bytes now; it had 8192"):
        check_disks(case.snapshot, case.spec)
    case.disks[0].unlink()
    with pytest.raises(SnapshotRefusedError, match=r"disk0: .* No such file"):
        check_disks(case.snapshot, case.spec)


@pytest.mark.parametrize("name", ["disk1", "memory", "state"])
def test_a_snapshot_without_a_file_is_broken(case: Case, name: str) -> None:
    check_files(case.folder / "one", case.snapshot)
    os.truncate(case.folder / "one" / name, 0)
    with pytest.raises(SnapshotBrokenError, match=f"one/{name} has 0 bytes"):
        check_files(case.folder / "one", case.snapshot)
    (case.folder / "one" / name).unlink()
    with pytest.raises(SnapshotBrokenError, match=f"{name}: No such file"):
        check_files(case.folder / "one", case.snapshot)


def test_a_journal_that_cannot_be_read_is_left_alone(case: Case) -> None:
    (case.folder / ".restore.json").write_text("{")
    with pytest.raises(SnapshotBrokenError, match="it was left alone"):
        settle(case.folder)
    assert (case.folder / ".restore.json").exists()


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ({"path": "/d.qcow2", "format": "qcow2"}, "disk0 of vm is a qcow2 image"),
        ({"driver": "/my.py"}, "disk0 of vm has a driver of your own"),
    ],
)
def test_what_cannot_be_saved_whole_is_refused(disk: dict[str, str], reason: str) -> None:
    document = {"name": "vm", "memory_mib": 64, "design": "microkernelized"}
    spec = build_spec({**document, "disks": [disk]})
    with pytest.raises(SnapshotRefusedError, match=reason):
        check_vm(spec, VmmKind.THIN)
    check_vm(build_spec({**document, "disks": [{**disk, "read_only": True}]}), VmmKind.THIN)
    with pytest.raises(
        SnapshotRefusedError, match="vm runs on the QEMU VMM, whose VMs have no snapshots yet"
    ):
        check_vm(build_spec(document), VmmKind.QEMU)
