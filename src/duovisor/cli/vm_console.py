"""``duovisor vm console`` and ``log``: what a VM's guest prints, and typing to it."""

from __future__ import annotations

import sys
from typing import Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json
from duovisor.cli.terminal import open_terminal

DEFAULT_LOG_BYTES = 64 << 10


class Guest:
    """Leaves at Ctrl-] or when the VM has ended; ``state`` is how."""

    def __init__(self) -> None:
        self.state = ""

    def on_escape(self) -> bool:
        return True

    def on_event(self, event: dict[str, Any]) -> bool:
        if event["action"] in ("vm.stopped", "vm.crashed"):
            self.state = event["action"].removeprefix("vm.")
        return bool(self.state)


@click.command()
@click.argument("name", shell_complete=complete_vm)
def console(name: str) -> None:
    """Attach to a running VM's serial console; Ctrl-] leaves, and the VM runs on.

    Any number may watch at once. What was printed before comes first.
    """
    from duovisor.cli.console_session import ConsoleSession

    client = connect()
    after = int(client.get("/v1/events", limit=1)["last"])
    guest = Guest()
    if sys.stderr.isatty():
        say(f"{name}: attached; Ctrl-] leaves")
    with open_terminal() as terminal:
        ConsoleSession(client, name, guest, terminal, after).run()
    say(f"{name}: {guest.state or 'left; it runs on'}")


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.option(
    "--bytes", "max_bytes", default=DEFAULT_LOG_BYTES, show_default=True, help="How much of the end, at most."
)
@json_option
def log(name: str, max_bytes: int, as_json: bool) -> None:
    """Show what a VM's guest printed on its serial console, in this run and those before."""
    from duovisor.client.service import build_path, vm_path

    path = build_path(f"{vm_path(name)}/console/log", {"max_bytes": max_bytes})
    printed = connect().request("GET", path).body
    if as_json:
        print_json({"name": name, "log": printed.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(printed)


def say(text: str) -> None:
    """A line about the VM, apart from what it prints; the terminal may be raw."""
    click.echo(f"\r{click.style(text, dim=True)}\r", err=True)
