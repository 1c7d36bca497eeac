"""A disk with a driver of one's own, in real partitions: kills, updates, and drivers that are wrong."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.own_driver.documentation import DISK
from tests.contract.succession.load import Load

from duovisor.controlling.errors import DriverFileError, PartitionError
from duovisor.controlling.machine_disks import adopt_disk
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.controlling.supervision.records import DriverEventKind
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from duovisor.controlling.supervision.device import DeviceSupervisor

    from .conftest import DiskStage

KINDS = DriverEventKind
HEAD = """
import os
from duovisor.controlling.drivers.storage_device import StorageDevice


class Mine(StorageDevice):
    def __init__(self, disk):
        super().__init__(disk, size_bytes=1 << 20)

    def write(self, offset, data):
        pass

    def read(self, offset, length):
        """
GOOD = HEAD + "return bytes([7]) * length\n"


def build(stage: DiskStage, source: str, **disk: Any) -> DeviceSupervisor:
    """The supervisor of the stage's disk with a driver of this text."""
    file = stage.run_dir / "mine.py"
    file.write_text(source)
    return stage.build_disk(driver=str(file), **disk)


async def test_the_documented_disk_survives_kills(stage: DiskStage) -> None:
    device = build(stage, DISK)
    await device.start()
    await stage.write(0, bytes(4096))
    flip = bytes(byte ^ 0xFF for byte in range(256))
    reference = bytearray(stage.image.read_bytes().translate(flip))
    source = random.Random(9)
    load = Load(stage.front, 0, reference, range(len(reference) // 4096), 4096, 16)
    await stage.kill_under_load(load, source, 6)
    assert stage.image.read_bytes().translate(flip) == reference


async def test_a_disk_without_an_image(stage: DiskStage) -> None:
    device = build(stage, GOOD, path="", serial="mine")
    await device.start()
    assert await stage.read() == bytes([7]) * 4096
    assert int.from_bytes(stage.front.get_config(0, 8), "little") == (1 << 20) // 512
    assert (await asyncio.to_thread(stage.client.request, 8, 0, 20))[1].rstrip(b"\0") == b"mine"
    assert device.plan.descriptors.keys() == {"source"}


async def test_an_update_takes_the_file_as_it_is_now(stage: DiskStage) -> None:
    device = build(stage, GOOD)
    await device.start()
    assert await stage.read() == bytes([7]) * 4096
    (stage.run_dir / "mine.py").write_text(GOOD.replace("7", "8"))
    done = await device.replace(latest=True)
    assert done.old_code != done.new_code
    assert await stage.read() == bytes([8]) * 4096
    (stage.run_dir / "mine.py").write_text("nonsense(")
    with pytest.raises(DriverFileError, match="line 1"):
        await device.replace(latest=True)
    assert await stage.read() == bytes([8]) * 4096


@pytest.mark.parametrize(
    ("misdeed", "said"),
    [
        ("raise OSError(5, 'no')", ""),
        ("return b'few'", "died"),
        ("return 7", "died"),
        ("os._exit(3)", "died"),
    ],
)
async def test_one_that_is_wrong_in_a_request(stage: DiskStage, misdeed: str, said: str) -> None:
    """An OSError is the guest's; with the rest the drivers die, until what is left is told as an error."""
    source = HEAD + f"if offset: {misdeed}\n        return bytes(length)\n"
    device = build(stage, source, on_driver_failure=DriverFailure.REPORT)
    device.backoff = Backoff(deaths_max=2)
    await device.start()
    assert await stage.read() == bytes(4096)
    with pytest.raises(OSError, match="status 1"):
        await stage.read(8)
    if not said:
        assert device.describe().deaths == 0
        assert await stage.read() == bytes(4096)
        return
    assert said in (await stage.wait_told(KINDS.FAILED)).message
    with pytest.raises(OSError, match="status 1"):
        await stage.read()
    (stage.run_dir / "mine.py").write_text(GOOD)
    await device.replace(latest=True)
    assert await stage.read(8) == bytes([7]) * 4096


async def test_one_that_is_given_up_leaves_its_requests_to_the_next(stage: DiskStage) -> None:
    source = HEAD + "if offset: raise ValueError('no')\n        return bytes(length)\n"
    device = build(stage, source)
    device.backoff = Backoff(deaths_max=2)
    await device.start()
    assert await stage.read() == bytes(4096)
    waiting = asyncio.create_task(stage.read(8))
    await stage.wait_told(KINDS.FAILED)
    assert stage.paused
    assert not waiting.done()
    (stage.run_dir / "mine.py").write_text(GOOD)
    await device.replace(latest=True)
    assert await waiting == bytes([7]) * 4096


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (DISK.replace("super().__init__(disk)", "pass"), "'Inverted' object has no attribute 'size_bytes'"),
        (GOOD.replace("1 << 20", "1000"), "a disk of 1000 bytes"),
        (GOOD.replace("(disk, size_bytes=1 << 20)", "(disk)"), "a disk without an image needs size_bytes"),
        (
            "from duovisor.channel.device import VirtioDevice as V\nclass A(V):\n    device_id = 2",
            "no StorageDevice",
        ),
        (GOOD.replace("(self, disk)", "(self)"), "takes 1 positional argument but 2 were given"),
    ],
)
async def test_what_cannot_be_a_disk_does_not_start(stage: DiskStage, source: str, complaint: str) -> None:
    with pytest.raises(PartitionError, match=complaint):
        await build(stage, source, path="").start()


async def test_another_devices_driver_is_refused_before_anything_starts(stage: DiskStage) -> None:
    with pytest.raises(DriverFileError, match="is for a device of type 4; a disk has type 2"):
        build(stage, "class A:\n    device_id = 4")


async def test_an_owner_that_comes_back_finds_the_drivers_text(stage: DiskStage) -> None:
    device = build(stage, DISK)
    await device.start()
    await stage.read()
    disk = stage.find_disk(driver=str(stage.run_dir / "mine.py"))
    (stage.run_dir / "mine.py").write_text("another text")
    with ExitStack() as files:
        found = adopt_disk(disk, device.pids, files)
        assert found.keys() == {"image", "source"}
        assert os.pread(found["source"], 1 << 16, 0) == DISK.encode()
