"""What a disk's driver is started with."""

from __future__ import annotations

from duovisor.controlling.machine_devices import POLL_US, build_block_words, plan_disk
from duovisor.sandbox import uid_of
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import DiskSpec, DriverFailure


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
