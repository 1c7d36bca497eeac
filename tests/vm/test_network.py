"""Guests of both designs on one bridge: they reach the host and each other, also while drivers die."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.networks import BRIDGE, HOST, list_ports
from tests.unit.vms.killed_manager import NAME
from tests.vm.adopting import adopting
from tests.vm.service_host import BOOT_TIMEOUT_S
from tests.vm.test_adoption import run_service
from tests.vm.waiting import LISTENS

from duovisor.controlling.errors import NetworkError
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.moving.move import move
from duovisor.controlling.plugging.plug import plug_in, take_out
from duovisor.controlling.supervision.backoff import Backoff
from duovisor.controlling.supervision.records import DeviceState
from duovisor.controlling.vms.limits import limit_running
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design, NicSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient
    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities

    from .conftest import Guest

    Boot = Callable[..., Awaitable[Guest]]

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("network")]

DESIGNS = (Design.MONOLITHIC, Design.MICROKERNELIZED)
TRANSFER_MIB = int(os.environ.get("DUOVISOR_TRANSFER_MIB", "16"))  # each ring goes round many times
KILL_EVERY_S = 2.0
LIMIT_MIB = 1  # a second
MAC = "52:54:00:77:00:0"
NO_CARRIER = "until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done"


async def boot_on_bridge(boot: Boot, design: Design, number: int = 2, **nic: object) -> Guest:
    document = {"bridge": BRIDGE, "mac": f"{MAC}{number}", **nic}
    guest = await boot(design, name=f"n{number}", memory_mib=256, cpus=1, nics=[document])
    await guest.output(
        f"killall udhcpc; ip addr add 10.77.0.{number}/24 dev eth0; ip link set eth0 up; ping -c1 -W5 {HOST}"
    )
    return guest


async def wait_spare(device: DeviceSupervisor) -> None:
    async with asyncio.timeout(120):
        while device.describe().spare_pid is None:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def killing(device: DeviceSupervisor, every_s: float = KILL_EVERY_S) -> AsyncIterator[list[int]]:
    """Kill the driver again and again meanwhile; which ones."""
    killed: list[int] = []

    async def kill() -> None:
        while True:
            await asyncio.sleep(every_s)
            pid = device.describe().pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()


class Peer:
    """The host's end of one TCP stream: sends ``mib`` MiB, or receives until the end; in its own thread."""

    def __init__(self, *, mib: int) -> None:
        self.digest = hashlib.md5(usedforsecurity=False)
        self.moved = 0
        self._mib = mib
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        block = os.urandom(1 << 20)
        with self._listener, self._listener.accept()[0] as stream:
            for index in range(self._mib):
                data = index.to_bytes(8, "little") + block[8:]
                self.digest.update(data)
                stream.sendall(data)
            if self._mib:
                stream.shutdown(socket.SHUT_WR)
            while data := stream.recv(1 << 20):
                self.moved += len(data)
                self.digest.update(data)

    def finish(self) -> str:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.digest.hexdigest()


async def download(guest: Guest, mib: int) -> None:
    peer = Peer(mib=mib)
    said = await guest.output(f"nc {HOST} {peer.port} </dev/null | md5sum", timeout_s=600)
    assert said.split()[0] == peer.finish()


async def upload(guest: Guest, mib: int) -> None:
    peer = Peer(mib=0)
    source = f"dd if=/dev/zero bs=1M count={mib} 2>/dev/null"
    await guest.output(f"{source} | nc {HOST} {peer.port}", timeout_s=600)
    assert peer.finish() == hashlib.md5(bytes(mib << 20), usedforsecurity=False).hexdigest()
    assert peer.moved == mib << 20


async def test_two_designs_on_one_bridge(boot: Boot, capabilities: HostCapabilities) -> None:
    first = await boot_on_bridge(boot, Design.MONOLITHIC, 2)
    second = await boot_on_bridge(boot, Design.MICROKERNELIZED, 3)
    assert len(list_ports()) == 2
    assert " 0% packet loss" in await second.output("ping -c 20 -i 0.05 -W 5 10.77.0.2")
    assert " 0% packet loss" in await first.output("ping -c 20 -i 0.05 -W 5 -s 1400 10.77.0.3")
    features = [await guest.output("cat /sys/class/net/eth0/device/features") for guest in (first, second)]
    assert features[0] == features[1]
    # its end of the connection stays open as long as its input, which a pipe that it writes to itself is
    await first.output(f"mkfifo /tmp/open; nc -l -p 7000 <>/tmp/open >/tmp/got & {LISTENS.format(7000)}")
    await second.output("head -c 5000000 /dev/urandom >/tmp/sent; nc 10.77.0.2 7000 </tmp/sent")
    await first.output(
        "for n in $(seq 300); do [ $(stat -c %s /tmp/got) -ge 5000000 ] && break; sleep 0.1; done"
    )
    sums = [
        await guest.output(f"md5sum <{file}") for guest, file in ((first, "/tmp/got"), (second, "/tmp/sent"))
    ]
    assert sums[0] == sums[1]
    device = second.machine.devices["nic0"]
    assert device.describe().state is DeviceState.RUNNING
    assert device.plan.role == "network driver"
    for number, guest in ((2, first), (3, second)):
        await exchange_card(guest, number, capabilities)


async def exchange_card(guest: Guest, number: int, capabilities: HostCapabilities) -> None:
    """Take the card that a guest booted with, give it another, and take that too."""
    ports = len(list_ports())
    await take_out(guest.machine, "nic0", timeout_s=60)
    assert len(list_ports()) == ports - 1  # its TAP is gone, and no driver of it is left
    assert await plug_in(guest.machine, NicSpec(bridge=BRIDGE, slot=4), capabilities) == "nic4"
    assert len(list_ports()) == ports
    there = "until ip addr add 10.77.0.{}/24 dev eth0; do sleep 0.1; done; ip link set eth0 up"
    await guest.output(there.format(number))
    assert " 0% packet loss" in await guest.output(f"ping -c1 -W9 {HOST}; ping -c 5 -i 0.05 -W 5 {HOST}")
    await take_out(guest.machine, "nic4", timeout_s=60)
    assert len(list_ports()) == ports - 1
    assert not guest.machine.devices.keys() - {"disk0"}


async def move_slowly(guest: ProbeClient, mib: int) -> tuple[float, float]:
    """How long it takes to send ``mib`` MiB to a guest, and to send them from it."""
    seconds = []
    for there in (True, False):
        peer = Peer(mib=mib if there else 0)
        source = "cat /dev/null" if there else f"dd if=/dev/zero bs=64k count={mib * 16} 2>/dev/null"
        began = time.monotonic()
        done = await guest.run(f"{source} | nc {HOST} {peer.port} | wc -c", timeout_s=300)
        assert done.exit == 0, done.output
        seconds.append(time.monotonic() - began)
        assert int(done.output) == (mib << 20 if there else 0)
        peer.finish()
        assert there or peer.moved == mib << 20
    return seconds[0], seconds[1]


async def test_limits_of_a_card_hold_wherever_its_driver_is(
    boot: Boot, capabilities: HostCapabilities
) -> None:
    """Set under the guest, they are there in the other design, with the next driver, and until taken away."""
    guest = await boot_on_bridge(boot, Design.MONOLITHIC)
    machine = guest.machine
    (tap,) = list_ports()
    await limit_running(machine, "nic0", {"in_limit": LIMIT_MIB << 20, "out_limit": LIMIT_MIB << 20})
    # the packet filter remembers a second of rest, and a little more
    assert min(await move_slowly(guest.probe, 4)) > 4 / LIMIT_MIB / 1.5
    assert tap in list_rules()
    await move(machine, Design.MICROKERNELIZED, capabilities)
    assert not any(port in list_rules() for port in [tap, *list_ports()])  # the driver keeps them
    device = machine.devices["nic0"]
    await wait_spare(device)
    (pid, *_) = device.pids
    os.kill(pid, signal.SIGKILL)
    async with connect_probe(machine.port_path(PORT_NAME)) as probe:
        assert min(await move_slowly(probe, 2)) > 2 / LIMIT_MIB / 1.5
    await limit_running(machine, "nic0", {"in_limit": None, "out_limit": LIMIT_MIB << 20})
    assert device.plan.rate == (0, LIMIT_MIB << 20)
    await move(machine, Design.MONOLITHIC, capabilities)
    (tap,) = list_ports()
    rules = list_rules()
    assert (rules.count("limit rate over"), rules.count(f"from-{tap} {{")) == (1, 1)
    await limit_running(machine, "nic0", {"in_limit": None, "out_limit": None})
    assert tap not in list_rules()


def list_rules() -> str:
    return subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("design", DESIGNS)
async def test_streams_are_whole(boot: Boot, design: Design) -> None:
    guest = await boot_on_bridge(boot, design)
    await download(guest, TRANSFER_MIB)
    await upload(guest, TRANSFER_MIB)


async def test_streams_survive_their_driver(boot: Boot) -> None:
    guest = await boot_on_bridge(boot, Design.MICROKERNELIZED)
    device = guest.machine.devices["nic0"]
    await wait_spare(device)
    async with killing(device) as killed:
        while len(killed) < 3:
            await download(guest, TRANSFER_MIB)
            await upload(guest, TRANSFER_MIB)
    assert device.describe().deaths >= len(killed) - 1
    assert (await guest.output("cat /sys/class/net/eth0/carrier")).strip() == "1"
    assert (await guest.output("cat /sys/class/net/eth0/carrier_changes")).strip() in ("1", "2")


async def test_a_driver_is_replaced_under_load(boot: Boot) -> None:
    guest = await boot_on_bridge(boot, Design.MICROKERNELIZED)
    device = guest.machine.devices["nic0"]
    replaced = 0

    async def download_meanwhile() -> None:
        while replaced < 4:
            await download(guest, TRANSFER_MIB)

    load = asyncio.create_task(download_meanwhile())
    for _ in range(4):
        await asyncio.sleep(0.3)
        await wait_spare(device)
        done = await device.replace(latest=False)
        assert done.old_pid != done.new_pid
        replaced += 1
    await load
    assert " 0% packet loss" in await guest.output(f"ping -c 3 {HOST}")


async def test_forged_frames_do_not_leave_the_guest(boot: Boot) -> None:
    guest = await boot_on_bridge(boot, Design.MICROKERNELIZED)
    await guest.output(
        "ip link set eth0 down; ip link set eth0 address 52:54:00:66:66:66; ip link set eth0 up"
    )
    assert (await guest.probe.run(f"ping -c 2 -W 1 {HOST}", timeout_s=30)).exit != 0
    active = guest.machine.devices["nic0"].crew.active
    assert active is not None
    counters = (await active.request("status"))["statistics"]["device"]
    assert counters["spoofed"] > 0


async def test_a_paused_vm_keeps_its_buffers(boot: Boot) -> None:
    guest = await boot_on_bridge(boot, Design.MICROKERNELIZED)
    for _ in range(3):
        await guest.machine.vmm.pause()
        await guest.machine.vmm.resume()
        await guest.machine.current.set_link("nic0", up=False)
        await guest.output(NO_CARRIER)
        await guest.machine.current.set_link("nic0", up=True)
        await download(guest, 4)


async def test_a_card_that_is_given_up_has_no_link(boot: Boot) -> None:
    guest = await boot_on_bridge(boot, Design.MICROKERNELIZED)
    device = guest.machine.devices["nic0"]
    device.backoff = Backoff(deaths_max=2)
    async with asyncio.timeout(300):
        while not device.failed.is_set():
            for pid in device.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
    await guest.output(NO_CARRIER)
    await device.replace(latest=False)
    assert " 0% packet loss" in await guest.output(f"ping -c 3 -W 5 {HOST}")


@pytest.mark.parametrize("design", DESIGNS)
async def test_a_card_outlives_its_service(folders: Directories, probe_image: Image, design: Design) -> None:
    document = {"name": NAME, "design": design, "memory_mib": 256, "nics": [{"bridge": BRIDGE}]}
    await run_service(folders, build_spec(add_image(document, probe_image)))
    port = folders.vms / NAME / "current/port0.sock"
    ping = f"ping -c 3 -W 5 {HOST}"
    async with connect_probe(port) as guest:
        await guest.wait_booted(BOOT_TIMEOUT_S)
        done = await guest.run(f"killall udhcpc; ip addr add 10.77.0.2/24 dev eth0; {ping}", timeout_s=60)
        assert b" 0% packet loss" in done.output  # nobody owns the VM now
    async with adopting(folders) as manager:
        if design is Design.MICROKERNELIZED:
            counted = await manager.read_counters(NAME)
            assert counted["nic0"]["sent_frames"] > 3
            (driver,) = [each for each in (await manager.get(NAME)).status.drivers if each.device == "nic0"]
            assert driver.pid is not None
            os.kill(driver.pid, signal.SIGKILL)
        async with connect_probe(port) as guest:
            assert b" 0% packet loss" in (await guest.run(ping, timeout_s=60)).output
        assert len(list_ports()) == 1
        await manager.stop(NAME)


async def test_a_bridge_that_is_missing(boot: Boot) -> None:
    with pytest.raises(NetworkError, match="bridge br-none does not exist"):
        await boot(Design.MONOLITHIC, nics=[{"bridge": "br-none"}])
    with pytest.raises(NetworkError, match="lo is an interface, but no Linux bridge"):
        await boot(Design.MICROKERNELIZED, nics=[{"bridge": "lo"}])
