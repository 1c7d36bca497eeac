"""A guest of each design on a NAT network: given an address, it finds others and is found where allowed.

Then each becomes one of the other design under its work, and it is all the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import threading
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bench.switch_guest import parse_pings
from tests.networks import (
    OUTSIDE,
    UPLINK,
    WIRE,
    Outside,
    enter_network,
    run_ip,
    why_no_namespace,
    wire_outside,
)
from tests.vm.service_host import ANY, build_document, reach_guest
from tests.vm.test_volumes import do, refuse
from tests.vm.waiting import LISTENS

from duovisor.client.service import vm_path
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.vm.service_host import ServiceHost

    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image
    from duovisor.controlling.images.probe_client import ProbeClient

pytestmark = pytest.mark.vm

LAN = "/v1/networks/lan"
VMS = {"web": Design.MONOLITHIC, "db": Design.MICROKERNELIZED}
ALLOWED, DENIED, FORWARDED = 7000, 7001, 2222
ANSWER_S = 60.0
DENIED_S = 1.0  # how long a refusal is waited for; what is let through answers in a few milliseconds


@pytest.fixture(autouse=True)
def outside() -> Iterator[Outside]:
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network(), wire_outside() as other:
        before = read_host()
        yield other
        assert read_host() == before, "something of the networks was left behind"


def read_host() -> dict[str, str]:
    """What networks change on a host."""
    settings = Path("/proc/sys/net/ipv4")
    return {
        # not their state, which the kernel may tell a moment after it has changed
        "links": " ".join(line.split(": ")[1] for line in run_ip("-oneline", "link").splitlines()),
        "addresses": run_ip("-oneline", "-4", "addr"),
        "tables": " ".join(
            line
            for line in subprocess.run(
                ["nft", "list", "ruleset"], check=True, capture_output=True, text=True
            ).stdout.splitlines()
            if "duovisor" not in line  # the table of cards stays, empty
            and ("dv-" in line or "from-" in line or "to-" in line)
        ),
        "forwarding": settings.joinpath(f"conf/{WIRE}/forwarding").read_text(),
        "router": settings.joinpath("ip_forward").read_text(),
    }


async def tell(guest: ProbeClient, command: str) -> str:
    done = await guest.run(command, timeout_s=180)
    return done.output.decode() if done.exit == 0 else f"exit {done.exit}: {done.output.decode()}"


def take_one(listener: socket.socket, words: bytes) -> threading.Thread:
    """Take one connection, say something on it, and note in ``peers`` who it was from."""

    def take() -> None:
        stream, (address, _) = listener.accept()
        with stream:
            stream.sendall(words)
            peers.append(address)

    thread = threading.Thread(target=take)
    thread.start()
    return thread


peers: list[str] = []


def read_all(address: str, port: int, timeout_s: float) -> bytes:
    with closing(socket.create_connection((address, port), timeout=timeout_s)) as stream:
        stream.settimeout(ANSWER_S)
        return b"".join(iter(lambda: stream.recv(100), b""))


def create(client: ServiceClient, spec: dict[str, Any], name: str, design: Design) -> str:
    """Define and start a VM; returns the address of its card."""
    card = {"network": "lan", "firewall": [f"in tcp {ALLOWED}", "in icmp"]}
    document = {**spec, "name": name, "design": design, "nics": [card]}
    client.request("POST", "/v1/vms", {"spec": document})
    client.follow(client.act(name, "start"))
    return address_of(client, name)


def address_of(client: ServiceClient, name: str) -> str:
    (found,) = client.get(vm_path(name))["status"]["addresses"]
    assert (found["card"], found["network"]) == ("nic0", "lan")
    address: str = found["address"]
    return address


async def test_a_nat_network(host: ServiceHost, probe_image: Image, outside: Outside) -> None:
    spec = build_document(probe_image)
    with host.connect() as client:
        do(client, "POST", "/v1/networks", {"name": "lan", "subnet": "10.44.0.0/24"})
        addresses = {name: create(client, spec, name, design) for name, design in VMS.items()}
        async with AsyncExitStack() as stack:
            guests = {
                name: await stack.enter_async_context(reach_guest(host, name, probe_image)) for name in VMS
            }
            for name, guest in guests.items():
                await check_guest(guest, name, addresses, outside)
            forward = {"host_port": FORWARDED, "vm": "db", "guest_port": ALLOWED}
            client.request("POST", f"{LAN}/forwards", forward)
            assert refuse(client, "POST", f"{LAN}/forwards", forward) == "forward-exists"
            for name, guest in guests.items():
                await check_firewall(guest, addresses[name])
            await check_forward(guests["db"], outside)
            await check_plugged(client, guests)
            server = client.get(LAN)["server_pid"]
            assert refuse(client, "DELETE", LAN) == "network-in-use"
            flush = await asyncio.create_subprocess_exec("nft", "flush", "ruleset")
            assert await flush.wait() == 0  # as Debian's nftables.service does it
            host.kill_and_restart()
            client.close()
            for name, guest in guests.items():
                await check_firewall(guest, addresses[name])
            await check_forward(guests["db"], outside)
            assert client.get(LAN)["server_pid"] == server
            for name, guest in guests.items():
                await check_lease(guest, addresses[name])
        for (name, design), other in zip(VMS.items(), reversed(VMS.values()), strict=True):
            assert design is not other
            async with working(host, name, probe_image, outside):
                client.follow(client.act(name, "switch", {"design": other}))
            async with reach_guest(host, name, probe_image) as guest:
                await check_lease(guest, addresses[name])
                await check_firewall(guest, addresses[name])
                if name == "db":
                    await check_forward(guest, outside)
            assert address_of(client, name) == addresses[name]
        for name in VMS:
            client.follow(client.act(name, "stop"))
        client.follow(client.act("web", "start"))
        assert address_of(client, "web") == addresses["web"]
        client.follow(client.act("web", "stop"))
        for name in VMS:
            client.request("DELETE", vm_path(name), headers=ANY)
        do(client, "DELETE", LAN)
        assert client.get("/v1/networks")["items"] == []


async def check_guest(guest: ProbeClient, name: str, addresses: dict[str, str], outside: Outside) -> None:
    """Its address is the one that was promised; it resolves the other, reaches that and the outside."""
    other = next(each for each in addresses if each != name)
    got = await tell(
        guest, "for i in $(seq 600); do ip addr show eth0 | grep 'inet ' && break; sleep 0.1; done"
    )
    assert f"inet {addresses[name]}/24" in got
    assert addresses[other] in await tell(guest, f"nslookup {other}.lan.internal 10.44.0.1")
    assert " 0% packet loss" in await tell(guest, f"ping -c 2 -i 0.1 -W 10 {addresses[other]}")
    listener = outside.do(lambda: socket.create_server((OUTSIDE, 0)))
    with listener:
        listener.settimeout(ANSWER_S)
        thread = take_one(listener, b"hello")
        said = await tell(guest, f"nc -w 60 {OUTSIDE} {listener.getsockname()[1]} </dev/null")
        thread.join()
    assert (said, peers.pop()) == ("hello", UPLINK)
    ping, forged = "ping -c 1 -W 1", "10.44.0.99"
    said = await tell(
        guest,
        f"ip addr add {forged}/32 dev eth0; {ping} -I {forged} 10.44.0.1; ip addr del {forged}/32 dev eth0",
    )
    assert "100% packet loss" in said
    card = "ip link set eth0 down; ip link set eth0 address %s; ip link set eth0 up"
    said = await tell(
        guest,
        f"old=$(cat /sys/class/net/eth0/address); {card % '52:54:00:99:99:99'}; {ping} 10.44.0.1; "
        f"{card % '$old'}; ip route replace default via 10.44.0.1",
    )
    assert "100% packet loss" in said
    assert " 0% packet loss" in await tell(guest, "ping -c 1 -W 10 10.44.0.1")


@asynccontextmanager
async def working(host: ServiceHost, name: str, image: Image, outside: Outside) -> AsyncIterator[None]:
    """Meanwhile the guest pings its router and reads a stream from outside: nothing of either is lost."""
    ended, sent = threading.Event(), hashlib.md5(usedforsecurity=False)

    def serve() -> None:
        with listener, listener.accept()[0] as stream:
            while not ended.wait(0.01):
                block = os.urandom(4096)
                sent.update(block)
                stream.sendall(block)

    listener = outside.do(lambda: socket.create_server((OUTSIDE, 0)))
    listener.settimeout(ANSWER_S)
    thread = threading.Thread(target=serve)
    thread.start()
    stream = f"nc {OUTSIDE} {listener.getsockname()[1]} </dev/null | md5sum >/tmp/sum; touch /tmp/read"
    async with reach_guest(host, name, image) as guest:
        before = parse_pings(await tell(guest, "cat /proc/net/snmp"))
        await tell(guest, f"({stream}) >/dev/null 2>&1 & ping -i 0.02 10.44.0.1 >/dev/null 2>&1 &")
        await tell(guest, "sleep 0.5")
    try:
        yield
    finally:
        ended.set()
        thread.join()
    async with reach_guest(host, name, image) as guest:
        await tell(guest, "sleep 0.5; killall ping; while [ ! -e /tmp/read ]; do sleep 0.1; done")
        assert (await tell(guest, "cat /tmp/sum")).split()[0] == sent.hexdigest()
        for _ in range(100):  # the last answer may be on its way
            pings, answers = parse_pings(await tell(guest, "sleep 0.1; cat /proc/net/snmp"))
            if pings - before[0] == answers - before[1]:
                break
        assert pings - before[0] == answers - before[1] > 10


async def check_lease(guest: ProbeClient, address: str) -> None:
    """Asked again, the network's server gives it the same address."""
    said = await tell(guest, "killall udhcpc; udhcpc -n -q -t 20 -T 1 -i eth0 -s /bin/dhcp-event")
    assert f"lease of {address} obtained" in said


async def check_plugged(client: ServiceClient, guests: dict[str, ProbeClient]) -> None:
    """A card that comes and goes while its guest runs has an address of its own meanwhile."""
    for name, guest in guests.items():
        do(client, "POST", f"{vm_path(name)}/attach-nic", {"nic": {"network": "lan"}})
        found = client.get(vm_path(name))["status"]["addresses"]
        assert [each["card"] for each in found] == ["nic0", "nic1"]
        ask = "ip link set eth1 up; udhcpc -n -q -t 20 -T 1 -i eth1 -s /bin/true"
        said = await tell(
            guest, f"for i in $(seq 600); do [ -e /sys/class/net/eth1 ] && break; sleep 0.1; done; {ask}"
        )
        assert f"lease of {found[1]['address']} obtained" in said
        do(client, "POST", f"{vm_path(name)}/detach-nic", {"device": "nic1"})
        assert len(client.get(vm_path(name))["status"]["addresses"]) == 1


async def check_firewall(guest: ProbeClient, address: str) -> None:
    """One port is open, another is not, though the guest listens on both."""
    for port in (ALLOWED, DENIED):
        await tell(guest, f"(echo open | nc -l -p {port} >/dev/null) & {LISTENS.format(port)}")
    assert read_all(address, ALLOWED, ANSWER_S) == b"open\n"
    with pytest.raises(TimeoutError):
        read_all(address, DENIED, DENIED_S)


async def check_forward(guest: ProbeClient, outside: Outside) -> None:
    """A port of the host leads to the guest's."""
    await tell(guest, f"(echo forwarded | nc -l -p {ALLOWED} >/dev/null) & {LISTENS.format(ALLOWED)}")
    assert outside.do(lambda: read_all(UPLINK, FORWARDED, ANSWER_S)) == b"forwarded\n"
