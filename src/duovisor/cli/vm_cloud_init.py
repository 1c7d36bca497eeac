"""``duovisor vm cloud-init``: what a guest is told at its first boot, and at the next if that changes."""

from __future__ import annotations

from typing import Any

import click

from duovisor.cli.cloud_init_options import cloud_init_options
from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_result


@click.group("cloud-init")
def command() -> None:
    """Show or change what a guest is told at its first boot.

    It is a disk of the VM (`cloud_init` in its definition), made anew at each start. When it has changed,
    the guest's cloud-init does its work once more, as on a new machine: SSH host keys are new, too.
    """


@command.command()
@click.argument("name", shell_complete=complete_vm)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what cloud-init is told."""
    from duovisor.cli.vm_edit import read_definition

    _, document = read_definition(connect(), name)
    seed = _find(document["spec"]["disks"])
    print_result(seed, as_json, lambda: _print(name, seed))


@command.command("set")
@click.argument("name", shell_complete=complete_vm)
@cloud_init_options
@click.option("--clear", is_flag=True, help="Forget what was said before.")
@json_option
def set_command(name: str, clear: bool, as_json: bool, **options: Any) -> None:
    """Change what cloud-init is told; the VM takes it up at its next start.

    What an option says takes the place of that part; a VM without a seed gets one.
    """
    from duovisor.cli.cloud_init_options import build_seed
    from duovisor.cli.vm_edit import read_definition, write_definition

    said = build_seed(options)
    client = connect()
    reply, document = read_definition(client, name)
    disks = document["spec"]["disks"]
    seed = {**({} if clear else _find(disks) or {}), **said}
    for disk in disks:
        if disk["cloud_init"] is not None:
            disk["cloud_init"] = seed
            break
    else:
        disks.append({"cloud_init": seed})
    vm = write_definition(client, name, document, reply.etag)
    later = "; it takes that up at its next start" if vm["status"]["restart_needed"] else ""
    print_result(seed, as_json, lambda: click.echo(f"{name} is changed{later}"))


def _find(disks: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((disk["cloud_init"] for disk in disks if disk["cloud_init"] is not None), None)


def _print(name: str, seed: dict[str, Any] | None) -> None:
    if seed is None:
        click.echo(f"{name} has no cloud-init disk; give it one with: duovisor vm cloud-init set {name}")
        return
    from duovisor.cli.definition import render_definition

    click.echo(render_definition({key: value for key, value in seed.items() if value}) or "{}", nl=False)
