"""``duovisor network create`` and ``delete``."""

from __future__ import annotations

import click

from duovisor.cli.completion import complete_network
from duovisor.cli.connection import connect
from duovisor.cli.network_list import network_path
from duovisor.cli.output import json_option, print_json
from duovisor.cli.progress import follow

KINDS = ("nat", "isolated", "bridged")


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="nat", show_default=True)
@click.option("--subnet", metavar="CIDR", help="Such as 10.20.30.0/24.  [default: a free one]")
@click.option("--no-dhcp", is_flag=True, help="No DHCP and DNS server; guests have addresses of their own.")
@click.option("--bridge", metavar="NAME", help="The host's bridge that a bridged network is on.")
@click.option("--vlans", is_flag=True, help="Cards may be on a VLAN each (isolated).")
@json_option
def create(
    name: str, kind: str, subnet: str | None, no_dhcp: bool, bridge: str | None, vlans: bool, as_json: bool
) -> None:
    """Make a network.

    \b
      nat        guests reach what the host reaches; nobody reaches them unless a port is forwarded
      isolated   guests reach each other, and the host's DHCP and DNS
      bridged    guests are on a bridge of the host, which you made; nothing of the host is changed

    A card is on it with --nic network=NAME, and has the same address at every start. What a guest sends
    from another MAC or address than its own is dropped, in both designs.
    """
    document = {
        "name": name,
        "kind": kind,
        "subnet": subnet,
        "dhcp": kind != "bridged" and not no_dhcp,
        "bridge": bridge,
        "vlans": vlans,
    }
    client = connect()
    operation = client.request("POST", "/v1/networks", document).document
    operation = follow(client, operation, quiet=as_json)
    if as_json:
        print_json(operation)
    else:
        click.echo(f"network {name} is made: {operation['message']}")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_network)
@json_option
def delete(names: tuple[str, ...], as_json: bool) -> None:
    """Delete networks, with all that they made on the host; refused while a VM's definition names one."""
    client, done = connect(), []
    for name in names:
        operation = client.request("DELETE", network_path(name)).document
        done.append(follow(client, operation, quiet=as_json))
        if not as_json:
            click.echo(f"network {name} is deleted")
    if as_json:
        print_json(done)
