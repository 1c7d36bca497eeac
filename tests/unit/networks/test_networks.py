"""Networks on a host of their own: made, used, refused, found again, and gone without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.network_driver.card_moves import run_bridge
from tests.networks import BRIDGE, run_ip
from tests.unit.networks.conftest import list_interfaces, list_tables, passes_on

from duovisor.controlling.errors import HostLacksError, NetworkError
from duovisor.controlling.machine_networks import open_taps
from duovisor.controlling.networks import dnsmasq, nft
from duovisor.controlling.networks.card_filter import sweep_filters
from duovisor.controlling.networks.checks import find_card
from duovisor.controlling.networks.documents import Forward, NetworkIntent
from duovisor.controlling.networks.errors import (
    ForwardExistsError,
    ForwardNotFoundError,
    NetworkExistsError,
    NetworkInUseError,
    NetworkNotFoundError,
    NetworkRefusedError,
    SubnetRefusedError,
)
from duovisor.controlling.networks.interfaces import read_tap_name
from duovisor.controlling.networks.records import NetworkKind, NetworkState, Wanted
from duovisor.hypervisor.qemu.nics import mac_of
from duovisor.process_identity import read_children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.networks.conftest import Host

    from duovisor.spec.vm import VirtualMachineSpec

NAT = Wanted(kind=NetworkKind.NAT)
QUIET = Wanted(kind=NetworkKind.ISOLATED, dhcp=False)


def read_known(host: Host, name: str, file: str) -> str:
    return (host.directories.runtime / "networks" / name / dnsmasq.KNOWN / file).read_text()


async def test_a_nat_network_is_made_and_leaves_nothing(host: Host) -> None:
    await host.networks.create("lan", NAT)
    view = await host.view("lan")
    assert (view.state, view.problem, view.interface) == (NetworkState.READY, "", "dv-lan")
    assert (view.subnet, view.gateway) == ("10.201.0.0/24", "10.201.0.1")
    assert view.forwarding == (BRIDGE,)
    assert passes_on(BRIDGE)
    assert passes_on("dv-lan")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"
    assert "inet dv-lan" in list_tables()
    assert view.server_pid is not None
    (program,) = read_children(view.server_pid)
    status = Path(f"/proc/{program}/status").read_text()
    assert "\nUid:\t0" not in status
    assert "\nNoNewPrivs:\t1" in status
    capabilities = next(line for line in status.splitlines() if line.startswith("CapBnd"))
    assert int(capabilities.split()[1], 16) == 1 << 12 | 1 << 10  # NET_ADMIN, NET_BIND_SERVICE
    await host.networks.delete("lan")
    assert not passes_on(BRIDGE)
    assert "dv-lan" not in list_interfaces()
    assert list_tables() == []
    assert not Path(f"/proc/{view.server_pid}").exists()


async def test_two_networks_share_what_the_host_passes_on(host: Host) -> None:
    await host.networks.create("a", NAT)
    await host.networks.create("b", NAT)
    assert (await host.view("b")).subnet == "10.201.1.0/24"
    await host.networks.delete("a")
    assert passes_on(BRIDGE)
    await host.networks.delete("b")
    assert not passes_on(BRIDGE)


async def test_a_host_that_passes_packets_on_goes_on_doing_so(host: Host) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    await host.networks.create("a", NAT)
    assert (await host.view("a")).forwarding == ()
    await host.networks.delete("a")
    assert passes_on(BRIDGE)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")


async def test_cards_have_addresses_that_stay(host: Host) -> None:
    await host.networks.create("lan", Wanted(kind=NetworkKind.NAT, subnet="10.9.0.0/24"))
    web = await host.define("web", {"network": "lan"}, {"network": "user"}, {"network": "lan"})
    placed = await host.networks.place(web)
    assert [(nic.bridge, nic.address) for nic in placed.nics] == [
        ("dv-lan", "10.9.0.2"),
        (None, None),
        ("dv-lan", "10.9.0.3"),
    ]
    assert placed.without_places() == web
    mac = mac_of("web", 0, web.nics[0])
    assert read_known(host, "lan", dnsmasq.CARDS).splitlines()[0] == f"{mac},10.9.0.2,web"
    assert read_known(host, "lan", dnsmasq.NAMES) == "10.9.0.2 web\n"
    await host.restart()
    assert await host.networks.place(web) == placed
    await host.forget("web")
    db = await host.networks.place(await host.define("db", {"network": "lan"}))
    assert db.nics[0].address == "10.9.0.2"  # of a VM that is not defined any more


async def test_a_port_leads_to_a_vm(host: Host) -> None:
    await host.networks.create("lan", NAT)
    web = await host.define("web", {"network": "lan"})
    mac = find_card("lan", web)
    forward = Forward(protocol="tcp", host_address=None, host_port=2222, mac=mac, guest_port=22)
    await host.networks.add_forward("lan", forward, "web")
    view = await host.view("lan")
    assert [(port.vm, port.address, port.guest_port) for port in view.forwards] == [("web", "10.201.0.2", 22)]
    with pytest.raises(ForwardExistsError, match="leads into network lan"):
        await host.networks.add_forward("lan", forward, "web")
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ForwardExistsError, match="a program of the host uses"):
            await host.networks.add_forward("lan", forward.model_copy(update={"host_port": port}), "web")
    elsewhere = forward.model_copy(update={"host_port": 99, "host_address": "192.0.2.7"})
    with pytest.raises(NetworkRefusedError, match="no address of this host"):
        await host.networks.add_forward("lan", elsewhere, "web")
    with pytest.raises(NetworkRefusedError, match="has no card"):
        find_card("other", web)
    await host.forget("web")
    other = await host.networks.place(await host.define("db", {"network": "lan"}))
    assert other.nics[0].address == "10.201.0.3"  # a port still leads to the other
    await host.networks.remove_forward("lan", "tcp", 2222, None)
    with pytest.raises(ForwardNotFoundError):
        await host.networks.remove_forward("lan", "tcp", 2222, None)
    assert (await host.view("lan")).forwards == ()


async def test_what_is_refused_changes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.networks.create("lan", Wanted(kind=NetworkKind.ISOLATED, subnet="10.9.0.0/24", dhcp=False))
    before = (list_interfaces(), list_tables())
    nat = NetworkKind.NAT
    for wanted, error in (
        (Wanted(kind=nat, subnet="10.77.0.0/16"), SubnetRefusedError),  # the host's
        (Wanted(kind=nat, subnet="10.9.0.0/29"), SubnetRefusedError),  # another network's
        (Wanted(kind=NetworkKind.BRIDGED, bridge="lo"), NetworkRefusedError),
        (Wanted(kind=NetworkKind.BRIDGED, bridge="br-none"), NetworkRefusedError),
    ):
        with pytest.raises(error):
            await host.networks.create("new", wanted)
    with pytest.raises(NetworkExistsError):
        await host.networks.create("lan", NAT)
    with pytest.raises(NetworkRefusedError):
        await host.networks.create("user", NAT)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setattr(nft, "ELSEWHERE", "/nowhere")
        patch.setattr(dnsmasq, "ELSEWHERE", "/nowhere")
        with pytest.raises(HostLacksError, match="dnsmasq"):
            await host.networks.create("new", NAT)
        with pytest.raises(HostLacksError, match="nft"):
            await host.networks.create("new", QUIET)
    assert [each.id for each in await host.networks.known.read_all()] in (["lan"], ["lan", "new"])
    assert (list_interfaces(), list_tables()) == before
    with pytest.raises(NetworkNotFoundError):
        await host.networks.delete("none")
    with pytest.raises(NetworkNotFoundError):
        await host.networks.place(await host.define("lost", {"network": "none"}))
    await host.define("web", {"network": "lan"})
    with pytest.raises(NetworkInUseError, match="has cards of web"):
        await host.networks.delete("lan")
    await host.forget("web")
    run_ip("link", "add", "foreign", "type", "bridge")
    run_ip("link", "add", "port0", "type", "veth", "peer", "name", "port1")
    run_ip("link", "set", "port0", "master", "dv-lan")
    with pytest.raises(NetworkInUseError, match="port0 is on dv-lan"):
        await host.networks.delete("lan")
    for name in ("foreign", "port0"):
        run_ip("link", "del", name)


async def test_a_bridge_of_the_hosts_is_left_as_it_is(host: Host) -> None:
    await host.networks.create("wire", Wanted(kind=NetworkKind.BRIDGED, bridge=BRIDGE))
    placed = await host.networks.place(await host.define("web", {"network": "wire"}))
    assert (placed.nics[0].bridge, placed.nics[0].address) == (BRIDGE, None)
    assert list_tables() == []
    await host.forget("web")
    await host.networks.delete("wire")
    assert BRIDGE in list_interfaces()


async def test_vlans_are_for_networks_that_have_them(host: Host) -> None:
    await host.networks.create("lan", QUIET)
    with pytest.raises(NetworkRefusedError, match="has no VLANs"):
        await host.networks.place(await host.define("web", {"network": "lan", "vlan": 7}))
    trunk = host.networks.create("trunk", Wanted(kind=NetworkKind.ISOLATED, dhcp=False, vlans=True))
    if not knows_vlans():
        with pytest.raises(HostLacksError, match="know no VLANs"):
            await trunk
        assert "dv-trunk" not in list_interfaces()
        return
    await trunk
    placed = await host.networks.place(await host.define("db", {"network": "trunk", "vlan": 7}))
    with open_tap(placed) as tap:
        shown = run_bridge("-j", "vlan", "show", "dev", read_tap_name(tap))
    (port,) = json.loads(shown)
    assert [(vlan["vlan"], set(vlan["flags"])) for vlan in port["vlans"]] == [
        (7, {"PVID", "Egress Untagged"})
    ]
    await host.forget("db")


def knows_vlans() -> bool:
    """Whether this kernel's bridges tell VLANs from each other."""
    words = ("ip", "link", "add", "trial", "type", "bridge", "vlan_filtering", "1")
    known = subprocess.run(words, capture_output=True, check=False).returncode == 0
    subprocess.run(("ip", "link", "delete", "trial"), capture_output=True, check=False)
    return known


@contextmanager
def open_tap(spec: VirtualMachineSpec) -> Iterator[int]:
    """The TAP of a VM's first card."""
    with ExitStack() as held:
        yield open_taps(spec, held)["nic0"]


async def test_a_cards_rules_come_and_go_with_its_tap(host: Host) -> None:
    await host.networks.create("lan", NAT)
    placed = await host.networks.place(
        await host.define("web", {"network": "lan", "firewall": ["in tcp 22"]})
    )
    with open_tap(placed) as tap:
        name = read_tap_name(tap)
        assert list_cards() == [name]
        (address, chain) = (placed.nics[0].address, "".join(nft_text(f"from-{name}")))
        assert f"ip saddr != {address} drop" in chain
        assert sweep_filters() == ()
    assert list_cards() == []
    with open_tap(placed) as tap:
        kept = os.dup(tap)
    assert len(list_cards()) == 1  # a VM runs on without its owner
    os.close(kept)
    assert len(sweep_filters()) == 1
    assert list_cards() == []


def list_cards() -> list[str]:
    """The TAPs that have rules."""
    (found,) = (
        each["map"] for each in nft.list_objects("map", "bridge", "duovisor", "senders") if "map" in each
    )
    return [str(name) for name, _ in found.get("elem", ())]


def nft_text(chain: str) -> str:
    words = ("nft", "list", "chain", "bridge", "duovisor", chain)
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


async def test_the_server_is_started_again_when_it_dies(host: Host) -> None:
    await host.networks.create("lan", NAT)
    first = (await host.view("lan")).server_pid
    assert first is not None
    for victim in (first, None):  # its sandbox's keeper alone, then the server
        pid = (await host.view("lan")).server_pid
        assert pid is not None
        os.kill(victim or read_children(pid)[0], signal.SIGKILL)
        async with asyncio.timeout(20):
            while (await host.view("lan")).server_pid in (pid, None):
                await asyncio.sleep(0.02)
    assert len(host.told) == 2
    assert (await host.view("lan")).state is NetworkState.READY
    await asyncio.sleep(0)
    before = (await host.view("lan")).server_pid
    await host.restart()
    assert (await host.view("lan")).server_pid == before


async def test_a_host_that_was_restarted_has_its_networks_again(host: Host) -> None:
    await host.networks.create("lan", NAT)
    pid = (await host.view("lan")).server_pid
    assert pid is not None
    await host.networks.close()
    os.kill(read_children(pid)[0], signal.SIGKILL)
    run_ip("link", "del", "dv-lan")
    nft.run_script("delete table inet dv-lan")
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/forwarding").write_text("0")
    assert (await host.view("lan")).problem == "dv-lan is not there"
    await host.restart()
    view = await host.view("lan")
    assert (view.state, view.problem) == (NetworkState.READY, "")
    assert passes_on(BRIDGE)
    assert "inet dv-lan" in list_tables()


async def test_what_another_service_made_stays(host: Host) -> None:
    run_ip("link", "add", "dv-other", "type", "bridge")
    run_ip("link", "set", "dv-other", "alias", "duovisor 000000000000 11111111")
    await host.networks.create("other", QUIET)
    assert (await host.view("other")).interface.startswith("dv-other-")
    await host.restart()
    assert "dv-other" in list_interfaces()
    await host.networks.delete("other")
    run_ip("link", "del", "dv-other")


async def test_what_no_network_knows_is_removed(host: Host) -> None:
    await host.networks.create("lan", QUIET)
    await host.networks.known.forget("lan")
    await host.restart()
    assert "dv-lan" not in list_interfaces()
    assert list_tables() == []


async def test_a_network_whose_deletion_failed_can_be_deleted_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.networks.create("lan", QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(nft, "run_script", refuse_script)
        with pytest.raises(NetworkError, match="not now"):
            await host.networks.delete("lan")
    assert (await host.networks.known.get("lan")).intent is NetworkIntent.DELETE
    with pytest.raises(NetworkRefusedError, match="half deleted"):
        await host.networks.place(await host.define("web", {"network": "lan"}))
    await host.forget("web")
    await host.networks.delete("lan")


def refuse_script(script: str) -> None:
    raise NetworkError("not now")
