"""What a disk's driver is started with."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.disk_files import open_others
from duovisor.controlling.errors import DriverFileError
from duovisor.controlling.machine_disks import POLL_US, build_block_words, plan_disk
from duovisor.controlling.partitions.factory import Modules
from duovisor.sandbox import uid_of
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import DiskSpec, DriverFailure

if TYPE_CHECKING:
    from pathlib import Path


def test_words_of_the_storage_driver() -> None:
    assert build_block_words(DiskSpec(path="/a")) == ("--queues", "1", "--queue-size", "256")
    full = DiskSpec.model_validate(
        {"path": "/a", "read_only": True, "cache": "none", "serial": "s", "queues": 4, "queue_size": 64}
    )
    words = build_block_words(full)
    assert words == ("--queues", "4", "--queue-size", "64", "--serial", "s", "--read-only", "--direct")
    assert "/a" not in words  # a partition knows no path


def test_plan_of_a_disk() -> None:
    disks = [{"path": "/a"}, {"path": "/b", "on_driver_failure": "report", "driver_hang_s": 5}]
    spec = build_spec({"name": "web", "design": "microkernelized", "memory": "64M", "disks": disks})
    plan = plan_disk(spec, 1, {"image": 9})
    assert (plan.device, plan.driver, plan.descriptors) == ("disk1", "block", {"image": 9})
    assert (plan.on_failure, plan.hang_s, plan.poll_us) == (DriverFailure.REPORT, 5.0, POLL_US)
    assert plan.uid == uid_of("web")
    assert plan.limits.address_space_bytes > 64 << 20


def test_plan_of_an_encrypted_disk() -> None:
    disk = {"path": "/a", "driver": "encrypted", "key_file": "/secret", "sector_bytes": 4096}
    spec = build_spec({"name": "web", "design": "microkernelized", "disks": [disk]})
    plan = plan_disk(spec, 0, {"image": 9, "key": 8})
    assert (plan.driver, plan.role, plan.kind) == ("encrypted", "encrypting driver", "block")
    assert (plan.modules, plan.words[-2:]) == (Modules.ENCRYPTION, ("--block-size", "4096"))
    assert "/secret" not in plan.words


def test_plan_of_a_disk_with_a_driver_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine: pass")
    disk = {"driver": str(file), "options": {"flip": 3}, "on_driver_failure": "report"}
    spec = build_spec({"name": "web", "design": "microkernelized", "disks": [disk]})
    with ExitStack() as files:
        others = open_others(spec.disks[0], files)
        plan = plan_disk(spec, 0, others, files=files)
        assert (plan.driver, plan.role, plan.kind) == ("own-disk", "driver mine.py", "own-disk")
        assert (plan.modules, plan.is_known_by_facts) == (Modules.LIBRARY, True)
        assert plan.words[-3:] == ("mine.py", "2", '{"flip": 3}')
        file.write_text("class Other: pass")
        assert plan.reread is not None
        fresh = plan.reread()
        assert fresh.source_code != plan.source_code
        assert os.pread(fresh.descriptors["source"], 100, 0) == b"class Other: pass"
        file.write_text("class Other:\n    device_id = 4")
        with pytest.raises(DriverFileError, match="is for a device of type 4; a disk has type 2"):
            plan.reread()
