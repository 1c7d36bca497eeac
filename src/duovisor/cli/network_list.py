"""``duovisor network list`` and ``show``."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from duovisor.cli.completion import complete_network
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option
from duovisor.cli.table import format_state, format_table, format_time, format_values
from duovisor.cli.watching import show as show_document
from duovisor.cli.watching import watch_option

HEADER = ("NAME", "KIND", "STATE", "INTERFACE", "SUBNET", "LEASES", "PORTS", "VMS")
RIGHT = ("LEASES", "PORTS")


@click.command("list")
@watch_option
@json_option
def list_command(watch: bool, as_json: bool) -> None:
    """List networks by name."""
    client = connect()
    show_document(
        client, lambda: client.get("/v1/networks")["items"], render_list, as_json=as_json, watch=watch
    )


@click.command()
@click.argument("name", shell_complete=complete_network)
@watch_option
@json_option
def show(name: str, watch: bool, as_json: bool) -> None:
    """Show a network: its addresses, ports, and who is on it."""
    client = connect()
    show_document(
        client, lambda: client.get(network_path(name)), render_network, as_json=as_json, watch=watch
    )


def network_path(name: str) -> str:
    """Where a network is in the API."""
    return f"/v1/networks/{quote(name, safe='')}"


def render_list(networks: list[dict[str, Any]]) -> str:
    """Networks as a table."""
    if not networks:
        return "no networks; duovisor network create lan makes one that leads out"
    rows = [
        (
            network["name"],
            network["kind"],
            format_state(network["state"]),
            network["interface"],
            network["subnet"] or "-",
            str(len(network["leases"])),
            str(len(network["forwards"])),
            ", ".join(network["vms"]) or "-",
        )
        for network in networks
    ]
    return format_table(HEADER, rows, right=RIGHT)


def render_network(network: dict[str, Any]) -> str:
    """All of a network."""
    values = {
        "name": network["name"],
        "kind": network["kind"],
        "state": format_state(network["state"]),
        **({"problem": click.style(network["problem"], fg="red")} if network["problem"] else {}),
        "interface": network["interface"] + (", with VLANs" if network["vlans"] else ""),
        "subnet": network["subnet"] or "-",
        "host's address": network["gateway"] or "-",
        "dhcp and dns": _describe_server(network),
        "passing on": ", ".join(network["forwarding"]) or "-",
        "vms": ", ".join(network["vms"]) or "-",
        "made": format_time(network["created_at"]),
    }
    parts = [format_values(values)]
    if network["leases"]:
        rows = [(each["address"], each["mac"], each["vm"], each["name"] or "-") for each in network["leases"]]
        parts.append(format_table(("ADDRESS", "MAC", "VM", "DNS NAME"), rows))
    if network["forwards"]:
        ports = [
            (
                f"{each['protocol']} {each['host_address'] or '*'}:{each['host_port']}",
                f"{each['vm']}:{each['guest_port']}",
                str(each["address"]),
            )
            for each in network["forwards"]
        ]
        parts.append(format_table(("PORT OF THE HOST", "LEADS TO", "AT"), ports))
    return "\n\n".join(parts)


def _describe_server(network: dict[str, Any]) -> str:
    if not network["dhcp"]:
        return "no"
    pid = network["server_pid"]
    return f"names in {network['domain']}, " + (f"pid {pid}" if pid else "not running")
