"""The encrypting driver in real partitions: what is read, what the image holds, who has the key."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.succession.load import Load

from duovisor.controlling.drivers.block_layout import FEATURE_DISCARD, FEATURE_WRITE_ZEROES
from duovisor.controlling.drivers.xts import Xts
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.machine_disks import adopt_disk
from duovisor.controlling.supervision.records import DeviceState, DriverEventKind
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from .conftest import DiskStage

TEXT = b"what nobody else shall read; " * 200


async def test_the_image_holds_what_dm_crypt_would_write(stage: DiskStage) -> None:
    await stage.build_encrypted().start()
    await stage.write(1000, TEXT[:4096])
    assert await stage.read(1000) == TEXT[:4096]
    stored = stage.image.read_bytes()
    assert b"nobody" not in stored
    cipher = Xts(stage.key.read_bytes(), 512)
    assert cipher.decrypt(stored[512_000 : 512_000 + 4096], 512_000) == TEXT[:4096]


async def test_units_of_4096_bytes_are_the_guests_blocks(stage: DiskStage) -> None:
    await stage.build_encrypted(sector_bytes=4096).start()
    await stage.write(8, TEXT[:4096])
    cipher = Xts(stage.key.read_bytes(), 4096)
    assert cipher.decrypt(stage.image.read_bytes()[4096:8192], 4096) == TEXT[:4096]
    assert int.from_bytes(stage.front.get_config(20, 4), "little") == 4096
    with pytest.raises(OSError, match="status 1"):
        await asyncio.to_thread(stage.client.write, 8, bytes(512))
    assert await stage.read(8) == TEXT[:4096]


async def test_requests_of_any_size_and_shape(stage: DiskStage) -> None:
    await stage.build_encrypted().start()
    await stage.write(0, bytes(4096))  # it serves
    data = random.Random(1).randbytes(1 << 20)
    await asyncio.to_thread(stage.client.write, 3, data)
    status, read = await asyncio.to_thread(stage.client.request, 0, 3, len(data), pieces=77)
    assert (status, read) == (0, data)
    assert not stage.front.features & (FEATURE_DISCARD | FEATURE_WRITE_ZEROES)


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("length", [4096, 65536])
async def test_killed_again_and_again(stage: DiskStage, length: int, cache: str) -> None:
    device = stage.build_encrypted(cache=cache)
    await device.start()
    await stage.write(0, bytes(4096))
    reference = bytearray(Xts(stage.key.read_bytes(), 512).decrypt(stage.image.read_bytes(), 0))
    source = random.Random(length)
    load = Load(stage.front, 0, reference, range(len(reference) // length), length, 16)
    await stage.kill_under_load(load, source, 8)
    await asyncio.to_thread(stage.client.flush)
    assert Xts(stage.key.read_bytes(), 512).decrypt(stage.image.read_bytes(), 0) == reference


async def test_all_drivers_of_a_running_disk_have_the_key_it_began_with(stage: DiskStage) -> None:
    device = stage.build_encrypted()
    await device.start()
    await stage.write(8, TEXT[:4096])
    stage.key.write_bytes(os.urandom(64))
    for count in (1, 2):
        await stage.wait_spare()
        for pid in device.pids:
            os.kill(pid, signal.SIGKILL)
        await stage.wait_told(DriverEventKind.RECOVERED, count)
        assert await stage.read(8) == TEXT[:4096]
    await device.replace(latest=False)
    assert await stage.read(8) == TEXT[:4096]


async def test_another_key_reads_noise(stage: DiskStage) -> None:
    device = stage.build_encrypted()
    await device.start()
    await stage.write(8, TEXT[:4096])
    await device.end()
    stage.key.write_bytes(os.urandom(64))
    stage.files.close()
    await stage.build_encrypted().start()
    await asyncio.sleep(0.2)
    noise = await stage.read(8)
    assert noise != TEXT[:4096]
    assert b"nobody" not in noise


async def test_the_key_is_where_it_must_be_and_nowhere_else(stage: DiskStage) -> None:
    device = stage.build_encrypted()
    await device.start()
    await stage.write(8, TEXT[:4096])
    await stage.wait_spare()
    key, name = stage.key.read_bytes(), str(stage.key).encode()
    for pid in device.pids:
        command = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert key not in command
        assert name not in command
    texts = b"".join(path.read_bytes() for path in stage.run_dir.glob("*.log"))
    described = b"".join(each.model_dump_json().encode() for each in stage.recorded)
    for text in (texts, described):
        assert not any(part in text for part in (key, key[:8], key.hex().encode()[:16], name))


async def test_an_owner_that_comes_back_finds_image_and_key_with_the_drivers(stage: DiskStage) -> None:
    device = stage.build_encrypted()
    await device.start()
    await stage.write(8, TEXT[:4096])
    key = stage.key.read_bytes()
    disk = stage.find_disk(driver="encrypted", key_file=str(stage.key))
    stage.key.unlink()
    with ExitStack() as files:
        found = adopt_disk(disk, device.pids, files)
        assert found.keys() == {"image", "key"}
        assert os.pread(found["key"], 100, 0) == key
        assert os.path.samestat(os.fstat(found["image"]), stage.image.stat())
        with pytest.raises(PermissionError):
            os.pwrite(found["key"], b"x", 0)


async def test_a_key_with_equal_halves_is_refused(stage: DiskStage) -> None:
    stage.key.write_bytes(os.urandom(32) * 2)
    with pytest.raises(PartitionError, match="both halves of the key are the same"):
        await stage.build_encrypted().start()


async def test_one_that_is_given_up_reports_errors_and_works_again(stage: DiskStage) -> None:
    device = stage.build_encrypted(on_driver_failure=DriverFailure.REPORT)
    await device.start()
    await stage.write(8, TEXT[:4096])
    await device.give_up("for a test")
    with pytest.raises(OSError, match="status 1"):
        await stage.read(8)
    await device.replace(latest=False)
    assert device.describe().state is DeviceState.RUNNING
    assert await stage.read(8) == TEXT[:4096]
