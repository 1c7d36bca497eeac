"""``duovisor vm create``, ``rename`` and ``delete``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json, print_result
from duovisor.cli.progress import follow
from duovisor.cli.vm_options import vm_options

ANY_REVISION = {"If-Match": "*"}

EPILOG = """
\b
Examples:
  duovisor vm create --image probe --start
  duovisor vm create web.yaml --design microkernelized --autostart
  duovisor vm create --name db --disk /srv/db.raw --memory 4G --nic user --forward 5432:5432
"""


@click.command(epilog=EPILOG)
@click.argument("spec_file", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@vm_options
@click.option("--autostart", is_flag=True, help="Start it with the host.")
@click.option("--order", type=int, default=0, help="Lower ones start first.  [default: 0]")
@click.option("--delay", "delay_s", type=float, default=0.0, help="Seconds of rest after its start.")
@click.option("--start", is_flag=True, help="Start it at once.")
@json_option
def create(
    spec_file: Path | None,
    autostart: bool,
    order: int,
    delay_s: float,
    start: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Define a VM.

    SPEC is a specification in TOML, YAML or JSON; options add to it or take the place of what it says.
    """
    from duovisor.cli.vm_document import build_spec_from, find_image
    from duovisor.client.service import vm_path

    client = connect()
    spec = build_spec_from(spec_file, options, lambda name: find_image(client, name))
    document = {
        "spec": spec.model_dump(mode="json"),
        "autostart": {"enabled": autostart, "order": order, "delay_s": delay_s},
    }
    vm = client.request("POST", "/v1/vms", document).document
    if start:
        follow(client, client.act(spec.name, "start"), quiet=as_json)
        vm = client.get(vm_path(spec.name))
    done = "is defined and runs" if start else f"is defined; start it with: duovisor vm start {spec.name}"
    print_result(vm, as_json, lambda: click.echo(f"{spec.name} {done}"))


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.argument("new")
@json_option
def rename(name: str, new: str, as_json: bool) -> None:
    """Rename a VM that does not run."""
    from duovisor.client.service import vm_path

    path = f"{vm_path(name)}/rename"
    vm = connect().request("POST", path, {"name": new}, ANY_REVISION).document
    print_result(vm, as_json, lambda: click.echo(f"{name} is called {new} now"))


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_vm)
@click.option("--force", is_flag=True, help="Pull the plug first if it runs.")
@json_option
def delete(names: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Forget VMs that do not run, and what their guests printed; their disks stay."""
    from duovisor.client.service import vm_path

    client = connect()
    for name in names:
        if force and client.get(vm_path(name))["status"]["pid"] is not None:
            follow(client, client.act(name, "stop"), quiet=True)
        client.request("DELETE", vm_path(name), headers=ANY_REVISION)
        if not as_json:
            click.echo(f"{name} is deleted; its disks stay")
    if as_json:
        print_json({"deleted": list(names)})
