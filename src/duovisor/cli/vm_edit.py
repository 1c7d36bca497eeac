"""``duovisor vm edit`` and ``autostart``: changes under the ETag of what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result

if TYPE_CHECKING:
    from duovisor.client.connection import Reply
    from duovisor.client.service import ServiceClient

    Document = dict[str, Any]


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change without an editor: memory=1G, disks.0.cache=none, autostart.order=5. Repeatable.",
)
@json_option
def edit(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Change a VM's definition in $EDITOR; a VM that runs takes it up at its next start.

    What the service refuses comes back into the editor, the reason above it; leaving it as it is gives up.
    """
    from duovisor.cli.definition import apply_setting

    client = connect()
    reply, document = read_definition(client, name)
    if settings:
        for setting in settings:
            apply_setting(document, setting)
        vm = write_definition(client, name, document, reply.etag)
    else:
        from duovisor.cli.editor import edit_document

        changed = edit_document(name, document, lambda new: write_definition(client, name, new, reply.etag))
        vm = changed or reply.document
    print_result(vm, as_json, lambda: click.echo(_describe_change(name, reply.document, vm)))


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.option("--on/--off", "enabled", default=None, help="Start it with the host, or do not.")
@click.option("--order", type=int, help="Lower ones start first.")
@click.option(
    "--delay", "delay_s", type=float, help="Seconds of rest after its start, before the next one's."
)
@json_option
def autostart(
    name: str, enabled: bool | None, order: int | None, delay_s: float | None, as_json: bool
) -> None:
    """Let a VM start with the host, or not; without options, show whether it does."""
    client = connect()
    reply, document = read_definition(client, name)
    wanted = {"enabled": enabled, "order": order, "delay_s": delay_s}
    given = {key: value for key, value in wanted.items() if value is not None}
    if given:
        document["autostart"] = {**document["autostart"], "enabled": True, **given}
        vm = write_definition(client, name, document, reply.etag)
        document["autostart"] = vm["record"]["autostart"]
    current = document["autostart"]
    print_result(current, as_json, lambda: click.echo(f"{name} {describe_autostart(current)}"))


def describe_autostart(autostart: Document) -> str:
    """Whether and when a VM starts with the host."""
    if not autostart["enabled"]:
        return "does not start with the host"
    return f"starts with the host: order {autostart['order']}, then {autostart['delay_s']:g} s of rest"


def read_definition(client: ServiceClient, name: str) -> tuple[Reply, Document]:
    """What is wanted of a VM, and the reply that said so, with its ETag."""
    from duovisor.client.service import vm_path

    reply = client.request("GET", vm_path(name))
    record = reply.document["record"]
    return reply, {"spec": record["spec"], "autostart": record["autostart"]}


def write_definition(client: ServiceClient, name: str, document: Document, etag: str) -> Document:
    """Change what is wanted of a VM; returns the VM. Raises ``ApiError``."""
    from duovisor.client.service import vm_path

    vm: Document = client.request("PUT", vm_path(name), document, {"If-Match": etag}).document
    return vm


def _describe_change(name: str, before: Document, after: Document) -> str:
    if before["record"]["revision"] == after["record"]["revision"]:
        return f"{name} stays as it was"
    if after["status"]["restart_needed"]:
        return f"{name} is changed; it takes that up at its next start"
    return f"{name} is changed"
