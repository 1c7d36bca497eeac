"""Disks and cards that come and go under one guest: in both designs, across a switch and a killed service."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.vm.service_host import ANY, build_document, reach_guest

from duovisor.client.errors import ApiError
from duovisor.client.service import vm_path
from duovisor.controlling.images.probe import TOOLS_SERIAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.vm.service_host import ServiceHost

    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient

pytestmark = pytest.mark.vm

FIND = "/dev/$(grep -l {} /sys/block/vd*/serial | cut -d/ -f4)"
# the kernel tells of a device a moment after its order was answered
AWAIT = "for i in $(seq 600); do {} >/dev/null 2>&1 && break; sleep 0.1; done; {}"

QCOW2 = {"disk": {"volume": "data", "serial": "qcow2"}}
SLOTS = "/sys/bus/pci/slots"
EJECT_CARD = f"echo 0 >$(dirname $(grep -l ':08$' {SLOTS}/*/address))/power"


def act(client: ServiceClient, action: str, document: Any = None) -> str:
    """Do something to the VM; what it came to."""
    return str(client.follow(client.act("web", action, document))["message"])


def refuse(client: ServiceClient, action: str, document: Any) -> str:
    """The code with which that fails."""
    with pytest.raises(ApiError) as caught:
        act(client, action, document)
    return caught.value.code


async def output(guest: ProbeClient, command: str) -> str:
    done = await guest.run(command, timeout_s=180)
    assert done.exit == 0, (command, done.output)
    return done.output.decode()


async def await_output(guest: ProbeClient, command: str) -> str:
    return await output(guest, AWAIT.format(command, command))


async def write_and_read(guest: ProbeClient, serial: str, word: str) -> None:
    at = FIND.format(serial)
    await output(guest, f"echo {word} | dd of={at} bs=512 seek=9 conv=sync,fsync 2>/dev/null")
    await output(guest, f"blockdev --flushbufs {at}")
    assert await output(guest, f"dd if={at} bs=512 skip=9 count=1 2>/dev/null | head -n 1") == f"{word}\n"


def read_devices(client: ServiceClient) -> tuple[list[str], list[str]]:
    """The disks that the definition has, by serial, and the devices that processes serve."""
    vm = client.get(vm_path("web"))
    assert not vm["status"]["restart_needed"]
    serving = {each["device"] for each in vm["status"]["processes"] if each["state"] == "running"} - {""}
    return [disk["serial"] for disk in vm["record"]["spec"]["disks"]], sorted(serving)


async def read_slowly(client: ServiceClient, guest: ProbeClient, device: str, serial: str) -> None:
    """A limit counts at once, under the guest; no limit is only as fast as it is."""
    limits = {"device": device, "bandwidth_limit": "2M"}
    client.request("POST", f"{vm_path('web')}/limit-disk", limits)
    began = time.monotonic()
    await output(guest, f"dd if={FIND.format(serial)} of=/dev/null bs=64k skip=640 count=96 2>/dev/null")
    assert time.monotonic() - began > 1.5  # 6 MiB; some of it at once
    client.request("POST", f"{vm_path('web')}/limit-disk", {"device": device})


async def lease(guest: ProbeClient) -> None:
    await await_output(guest, "ls -d /sys/class/net/eth*")
    said = await output(guest, "udhcpc -q -n -t 30 -T 1 -i eth0 -s /bin/dhcp-event && ip addr")
    assert "10.0.2.15" in said


async def test_devices_come_and_go_in_both_designs(
    host: ServiceHost, probe_image: Image, scratch: Path
) -> None:
    spec = build_document(probe_image) | {"name": "web", "design": "monolithic"}
    with host.connect() as client:
        volume = {"pool": "default", "name": "data", "size_bytes": 64 << 20, "format": "qcow2"}
        client.follow(client.request("POST", "/v1/volumes", volume).document)
        client.request("POST", "/v1/vms", {"spec": spec})
        act(client, "start")
        # the guest's line ends with the VMM that it leads to: one for each of the three
        async with reach_guest(host, "web", probe_image) as guest:
            await plug_monolithic(client, guest, scratch)
        act(client, "switch", {"design": "microkernelized"})
        async with reach_guest(host, "web", probe_image) as guest:
            await plug_microkernelized(host, client, guest, scratch)
        act(client, "switch", {"design": "monolithic"})
        async with reach_guest(host, "web", probe_image) as guest:
            await write_and_read(guest, "raw", "eight")
            act(client, "detach-disk", {"device": "disk2"})
            act(client, "detach-disk", {"device": "disk0"})  # one that it booted with
            assert "vd" not in await output(guest, "ls /sys/block")
        act(client, "stop")
        assert scratch.read_bytes()[9 * 512 :].startswith(b"eight\n")
        client.request("DELETE", vm_path("web"), headers=ANY)


async def plug_monolithic(client: ServiceClient, guest: ProbeClient, scratch: Path) -> None:
    raw = {"disk": {"path": str(scratch), "serial": "raw"}}
    assert act(client, "attach-disk", raw) == "disk1 attached"
    await await_output(guest, "grep -l raw /sys/block/vd*/serial")
    await write_and_read(guest, "raw", "one")
    assert refuse(client, "attach-disk", raw) == "plug-refused"
    assert refuse(client, "attach-disk", {"disk": {"path": "/nowhere"}}) == "disk-file"
    assert act(client, "attach-disk", QCOW2) == "disk2 attached"
    await await_output(guest, "grep -l qcow2 /sys/block/vd*/serial")
    await write_and_read(guest, "qcow2", "two")
    await read_slowly(client, guest, "disk1", "raw")
    assert act(client, "attach-nic", {"nic": {"network": "user"}}) == "nic0 attached"
    await lease(guest)
    assert act(client, "detach-nic", {"device": "nic0"}) == "nic0 detached"
    assert read_devices(client) == ([TOOLS_SERIAL, "raw", "qcow2"], [])


async def plug_microkernelized(
    host: ServiceHost, client: ServiceClient, guest: ProbeClient, scratch: Path
) -> None:
    await write_and_read(guest, "raw", "three")
    await write_and_read(guest, "qcow2", "four")
    for device in ("disk1", "disk2"):  # that came while another VMM ran
        assert act(client, "detach-disk", {"device": device}) == f"{device} detached"
    assert read_devices(client) == ([TOOLS_SERIAL], ["disk0"])
    assert scratch.read_bytes()[9 * 512 :].startswith(b"three\n")
    assert refuse(client, "detach-disk", {"device": "disk1"}) == "device-not-found"

    assert act(client, "attach-disk", QCOW2) == "disk1 attached"
    assert act(client, "attach-disk", {"disk": {"path": str(scratch), "serial": "raw"}}) == "disk2 attached"
    assert act(client, "attach-nic", {"nic": {"network": "user"}}) == "nic0 attached"
    await await_output(guest, "grep -l raw /sys/block/vd*/serial")
    await write_and_read(guest, "qcow2", "five")
    await read_slowly(client, guest, "disk2", "raw")
    await lease(guest)
    kill_driver(client, "disk2")
    await write_and_read(guest, "raw", "six")
    before = read_pids(client, "disk2") & read_pids(client, "nic0")
    assert host.kill_and_restart()["adopted"] == ["web"]
    client.close()
    assert before <= read_pids(client, "")
    await write_and_read(guest, "raw", "seven")
    assert read_devices(client) == (
        [TOOLS_SERIAL, "qcow2", "raw"],
        ["disk0", "disk1", "disk2", "nic0"],
    )
    await output(guest, EJECT_CARD)  # a guest may throw a device out by itself
    await wait_event(client, "vm.device-gone")
    assert act(client, "detach-nic", {"device": "nic0"}) == "nic0 detached"
    act(client, "detach-disk", {"device": "disk1"})
    client.follow(client.request("DELETE", "/v1/volumes/default/data").document)


def read_pids(client: ServiceClient, device: str) -> set[int]:
    """The processes that serve a device, and the VMM."""
    processes = client.get(vm_path("web"))["status"]["processes"]
    return {each["pid"] for each in processes if not device or each["device"] in ("", device)}


def kill_driver(client: ServiceClient, device: str) -> None:
    drivers: Sequence[Any] = client.get(vm_path("web"))["status"]["drivers"]
    os.kill(next(each["pid"] for each in drivers if each["device"] == device), signal.SIGKILL)


async def wait_event(client: ServiceClient, action: str) -> None:
    async with asyncio.timeout(180):
        while not any(each["action"] == action for each in client.get("/v1/events?limit=1000")["items"]):
            await asyncio.sleep(0.05)
