"""A file system of the host fills up under a writing guest: it stands still, goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import ANY, build_document, reach_guest

from duovisor.client.service import vm_path
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.service_host import ServiceHost

    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image

pytestmark = pytest.mark.vm

MIB = 1 << 20
FS_MIB, FILLER_MIB, DISK_MIB, WRITTEN_MIB = 24, 8, 16, 10


@pytest.fixture
def small(host: ServiceHost) -> Iterator[Path]:
    """A file system with less room than its two disks may want."""
    folder = host.directories.state / "small"
    folder.mkdir(mode=0o755)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FS_MIB}m", "none", folder]).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def make_images(folder: Path) -> tuple[Path, Path, list[Path]]:
    """Two disks without content, and files that are in their way: one for each."""
    raw, qcow2, fillers = folder / "a.raw", folder / "b.qcow2", [folder / "1", folder / "2"]
    with raw.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, f"{DISK_MIB}M"], check=True)
    for filler in fillers:
        filler.write_bytes(bytes(FILLER_MIB * MIB))
    return raw, qcow2, fillers


async def wait_state(client: ServiceClient, state: str) -> dict[str, Any]:
    async with asyncio.timeout(300):
        while (status := client.get(vm_path("web"))["status"])["state"] != state:
            await asyncio.sleep(0.05)
    return dict(status)


async def wait_full(client: ServiceClient, disks: list[str]) -> None:
    async with asyncio.timeout(300):
        while client.get(vm_path("web"))["status"]["full_disks"] != disks:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("design", Design)
async def test_a_guest_writes_until_there_is_no_room(
    host: ServiceHost, small: Path, probe_image: Image, design: Design
) -> None:
    raw, qcow2, fillers = make_images(small)
    spec = build_document(probe_image) | {"name": "web", "design": design}
    spec["disks"] += [{"path": str(raw), "serial": "raw"}]
    spec["disks"] += [{"path": str(qcow2), "format": "qcow2", "serial": "qcow2"}]
    with host.connect() as client:
        client.request("POST", "/v1/vms", {"spec": spec})
        client.follow(client.act("web", "start"))
        async with reach_guest(host, "web", probe_image) as guest:
            at = "/dev/$(grep -l {} /sys/block/vd*/serial | cut -d/ -f4)"
            write = "head -c {0} /dev/urandom >/tmp/{1}; dd if=/tmp/{1} of={2} bs=1M conv=notrunc,fsync"
            writing = [
                write.format(WRITTEN_MIB * MIB, serial, at.format(serial)) for serial in ("raw", "qcow2")
            ]
            done = asyncio.create_task(guest.run("; ".join(writing), timeout_s=3000))
            status = await wait_state(client, "paused")
            assert status["full_disks"] == ["disk1"]
            assert not done.done()
            await asyncio.sleep(1.5)  # it looks for room every second
            assert client.get(vm_path("web"))["status"]["state"] == "paused"
            client.close()
            assert host.kill_and_restart()["adopted"] == ["web"]  # who comes after knows why it stands
            assert client.get(vm_path("web"))["status"]["full_disks"] == status["full_disks"]
            fillers[0].unlink()
            await wait_full(client, ["disk2"])
            fillers[1].unlink()
            wrote = await done
            await wait_state(client, "running")
            assert wrote.exit == 0, wrote.output
            compare = [
                f"dd if={at.format(s)} bs=1M count={WRITTEN_MIB} 2>/dev/null | cmp - /tmp/{s}"
                for s in ("raw", "qcow2")
            ]
            await guest.run("echo 3 >/proc/sys/vm/drop_caches", timeout_s=300)
            compared = await guest.run(" && ".join(compare), timeout_s=300)
            assert compared.exit == 0, compared.output
            events = {each["action"] for each in client.get("/v1/events?limit=200")["items"]}
            assert {"vm.disk-full", "vm.disk-room"} <= events
            assert not {"vm.driver-hung", "vm.driver-died", "vm.driver-failed"} & events
            assert not client.get(vm_path("web"))["status"]["full_disks"]
        client.follow(client.act("web", "stop"))
        client.request("DELETE", vm_path("web"), headers=ANY)
