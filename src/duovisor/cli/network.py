"""``duovisor network``: what VMs are connected to. Each command's module is imported when it is typed."""

from __future__ import annotations

import click

from duovisor.cli.lazy_group import LazyGroup

COMMANDS = {
    "list": ("network_list:list_command", "List networks."),
    "show": ("network_list:show", "Show a network: its addresses, ports, and who is on it."),
    "create": ("network_act:create", "Make a network."),
    "delete": ("network_act:delete", "Delete networks, with all that they made on the host."),
    "forward": ("network_forward:command", "Lead ports of the host to VMs."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Make, show and delete networks.

    \b
      duovisor network create lan                                a NAT network: out, not in
      duovisor vm create --image probe --nic network=lan --start
      duovisor network show lan                                  who has which address
      duovisor network forward add lan tcp 2222 probe:22         and in, where you say so
    """
