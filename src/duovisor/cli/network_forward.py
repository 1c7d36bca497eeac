"""``duovisor network forward``: ports of the host that lead to VMs."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import click

from duovisor.cli.completion import complete_network
from duovisor.cli.connection import connect
from duovisor.cli.network_list import network_path
from duovisor.cli.output import json_option, print_result

PROTOCOLS = click.Choice(["tcp", "udp"])


@click.group()
def command() -> None:
    """Lead ports of the host to VMs in a NAT network.

    They are open to whoever reaches the host, on all its addresses or the one you name, but not on its
    loopback: the host itself reaches a guest at the guest's own address.
    """


@command.command()
@click.argument("network", shell_complete=complete_network)
@click.argument("protocol", type=PROTOCOLS)
@click.argument("host", metavar="[ADDRESS:]PORT")
@click.argument("guest", metavar="VM:PORT")
@json_option
def add(network: str, protocol: str, host: str, guest: str, as_json: bool) -> None:
    """Lead a port of the host to a VM's, as in: add lan tcp 2222 web:22."""
    address, port = parse_place(host)
    vm, colon, guest_port = guest.rpartition(":")
    if not colon:
        raise click.BadParameter(f"{guest!r} names no port; write for example web:22")
    document = {
        "protocol": protocol,
        "host_address": address,
        "host_port": port,
        "vm": vm,
        "guest_port": read_port(guest_port),
    }
    changed = connect().request("POST", f"{network_path(network)}/forwards", document).document
    print_result(changed, as_json, lambda: click.echo(f"{protocol} port {host} of the host leads to {guest}"))


@command.command()
@click.argument("network", shell_complete=complete_network)
@click.argument("protocol", type=PROTOCOLS)
@click.argument("host", metavar="[ADDRESS:]PORT")
@json_option
def remove(network: str, protocol: str, host: str, as_json: bool) -> None:
    """Let a port of the host lead nowhere; connections through it that are open go on."""
    address, port = parse_place(host)
    query = f"?{urlencode({'host_address': address})}" if address else ""
    connect().request("DELETE", f"{network_path(network)}/forwards/{protocol}/{port}{query}")
    done: dict[str, Any] = {"removed": {"protocol": protocol, "host_address": address, "host_port": port}}
    print_result(done, as_json, lambda: click.echo(f"{protocol} port {host} of the host leads nowhere"))


def parse_place(text: str) -> tuple[str | None, int]:
    """``[ADDRESS:]PORT``."""
    address, _, port = text.rpartition(":")
    return address or None, read_port(port)


def read_port(text: str) -> int:
    """A port's number; whether it can be one, the service says."""
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter(f"{text!r} is no port")
    return int(text)
