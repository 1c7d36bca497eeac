"""``duovisor network``: what is typed, sent and shown, with a service in a network namespace of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.networks import enter_network, why_no_namespace
from tests.unit.cli.conftest import check_refusal

from duovisor.cli.vm_options import parse_nic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.cli.conftest import Program


@pytest.fixture(autouse=True)
def namespace(request: pytest.FixtureRequest) -> Iterator[None]:
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network():
        yield


def test_a_day_with_networks(namespace: None, duovisor: Program) -> None:
    assert duovisor.run("network", "list").output.startswith("no networks; ")
    done = duovisor.run("network", "create", "lan", "--subnet", "10.9.0.0/24")
    assert done.output == "network lan is made: dv-lan, 10.9.0.0/24\n"
    done = duovisor.run("network", "create", "quiet", "--kind", "isolated", "--no-dhcp")
    assert done.output == "network quiet is made: dv-quiet\n"
    rules = "firewall=in tcp 22;in icmp from 10.0.0.0/8"
    assert duovisor.run("vm", "create", "--name", "web", "--nic", f"network=lan,{rules}").exit_code == 0
    assert "nic" not in duovisor.run("vm", "show", "web").errors
    assert "lan, firewall: in tcp 22; in icmp from 10.0.0.0/8" in duovisor.run("vm", "show", "web").output
    done = duovisor.run("network", "forward", "add", "lan", "tcp", "2222", "web:22")
    assert done.output == "tcp port 2222 of the host leads to web:22\n"
    shown = duovisor.run("network", "show", "lan").output
    assert "names in lan.internal, pid " in shown
    assert "tcp *:2222        web:22    10.9.0.2" in shown
    again = duovisor.run("network", "forward", "add", "lan", "tcp", "2222", "web:23")
    assert "leads into network lan already" in check_refusal(again, 4)
    assert "has cards of web" in duovisor.run("network", "delete", "lan").errors
    done = duovisor.run("network", "forward", "remove", "lan", "tcp", "2222")
    assert done.output == "tcp port 2222 of the host leads nowhere\n"
    assert duovisor.run("vm", "delete", "web").exit_code == 0
    found = json.loads(duovisor.run("network", "list", "--json").output)
    assert [network["name"] for network in found] == ["lan", "quiet"]
    assert duovisor.run("network", "delete", "lan", "quiet").output == (
        "network lan is deleted\nnetwork quiet is deleted\n"
    )


def test_what_is_refused_says_why(namespace: None, duovisor: Program) -> None:
    said = duovisor.run("network", "create", "lan", "--subnet", "10.77.0.0/16")
    assert (said.exit_code, said.output) == (2, "")
    assert "overlaps 10.77.0.0/24 of the host's br-test" in said.errors
    assert "there is no network 'lan'" in duovisor.refuse("network", "delete", "lan", exit_code=3)
    assert duovisor.run("network", "forward", "add", "lan", "tcp", "x", "web:22").exit_code == 2


def test_a_card_is_typed() -> None:
    assert parse_nic("network=lan,vlan=7") == {"network": "lan", "vlan": "7"}
    assert parse_nic("user") == {"network": "user"}
