"""An encrypted disk and one with a driver of one's own, in a real guest: drivers and service are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from tests.contract.own_driver.documentation import DISK
from tests.unit.vms.killed_manager import NAME
from tests.vm.adopting import adopting
from tests.vm.service_host import BOOT_TIMEOUT_S

from duovisor.controlling.drivers.xts import Xts
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.images.storage_jobs import run_verify
from duovisor.controlling.key_files import create_key
from duovisor.spec.loading import build_spec

from .test_adoption import run_service

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.vms.manager import VmManager
    from duovisor.directories import Directories

DISK_BYTES = 64 << 20
TEXT = b"what nobody else shall read"
KILLS = 6
AT_SECTOR = 100_000


async def kill_each(manager: VmManager, load: asyncio.Task[str]) -> int:
    """Kill the drivers in turn while the load runs; returns how many were."""
    kills = 0
    while not load.done():
        await asyncio.sleep(0.3)
        drivers = (await manager.get(NAME)).status.drivers
        pid = drivers[kills % 2].pid
        if pid is not None and kills < KILLS:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
    return kills


async def output(probe: ProbeClient, command: str) -> bytes:
    done = await probe.run(command, timeout_s=60)
    assert done.exit == 0, done.output
    return done.output


async def test_they_outlive_their_drivers_and_the_service(
    folders: Directories, probe_image: Image, tmp_path: Path
) -> None:
    secret, plain, key, driver = (folders.state / name for name in ("secret", "plain", "key", "inverted.py"))
    for path in (secret, plain):
        path.touch()
        os.truncate(path, DISK_BYTES)
    create_key(key)
    driver.write_text(DISK)  # as docs/write-a-driver.md prints it
    disks = [
        {"path": str(secret), "driver": "encrypted", "key_file": str(key), "serial": "secret"},
        {"path": str(plain), "driver": str(driver), "options": {"flip": 1}},
    ]
    document = {"name": NAME, "design": "microkernelized", "memory_mib": 256, "disks": disks}
    before = await run_service(folders, build_spec(add_image(document, probe_image)))
    assert [each.device for each in before.drivers] == ["disk0", "disk1", "disk2"]
    async with connect_probe(folders.vms / NAME / "current/port0.sock") as probe:
        await probe.wait_booted(BOOT_TIMEOUT_S)
        for name in ("vda", "vdb"):
            words = f"dd of=/dev/{name} seek={AT_SECTOR} conv=fsync,sync bs=512"
            await output(probe, f"echo {TEXT.decode()} | {words}")
        for each in before.drivers[:2]:  # nobody owns the VM now: the spares take over
            assert each.pid is not None
            os.kill(each.pid, signal.SIGKILL)
        key.rename(tmp_path / "key")  # the drivers have it
        driver.write_text("nonsense(")
        async with adopting(folders) as manager:
            for name in ("vda", "vdb"):
                read = await output(probe, f"dd if=/dev/{name} skip={AT_SECTOR} count=1 iflag=direct")
                assert TEXT in read
            load = asyncio.create_task(run_both(probe))
            kills = await kill_each(manager, load)
            assert await load == "ok ok"
            assert kills == KILLS
            assert await output(probe, "cat /sys/block/vda/serial") == b"secret"
            errors = await output(probe, "dmesg | grep -ciE 'I/O error|reset|is not a head' || true")
            assert errors.strip() == b"0"
            await manager.stop(NAME)
    check_images(secret.read_bytes(), plain.read_bytes(), (tmp_path / "key").read_bytes())


async def run_both(probe: ProbeClient) -> str:
    """Write and verify on both disks: what is said of each."""
    return " ".join([await run_verify(probe, f"/dev/{name}", size_mib=24) for name in ("vda", "vdb")])


def check_images(secret: bytes, plain: bytes, key: bytes) -> None:
    """Nothing of the text is in the encrypted image; the key, and it alone, brings it back."""
    place = slice(AT_SECTOR * 512, AT_SECTOR * 512 + 512)
    assert TEXT not in secret
    assert TEXT in Xts(key, 512).decrypt(secret[place], place.start)
    assert TEXT not in Xts(key[::-1], 512).decrypt(secret[place], place.start)
    assert TEXT not in plain
    assert TEXT in bytes(byte ^ 1 for byte in plain[place])
