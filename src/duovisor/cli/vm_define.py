"""``duovisor vm create``, ``clone``, ``rename`` and ``delete``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from duovisor.cli.cloud_init_options import cloud_init_options
from duovisor.cli.completion import complete_vm
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json, print_result
from duovisor.cli.progress import follow
from duovisor.cli.vm_options import vm_options
from duovisor.cli.volume_act import read_size

if TYPE_CHECKING:
    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image

ANY_REVISION = {"If-Match": "*"}

EPILOG = """
\b
Examples:
  duovisor vm create --image probe --start
  duovisor vm create --image debian-12 --name web --memory 1G --ssh-key ~/.ssh/id_ed25519.pub --start
  duovisor vm create web.yaml --design microkernelized --autostart
  duovisor vm create --name db --disk /srv/db.raw --memory 4G --nic user --forward 5432:5432
"""


@click.command(epilog=EPILOG)
@click.argument("spec_file", metavar="[SPEC]", required=False, type=click.Path(path_type=Path))
@vm_options
@click.option("--full", is_flag=True, help="Of an image's disk: a whole copy, not what differs from it.")
@click.option("--pool", help="Where the clone of an image's disk goes.  [default: default]")
@click.option(
    "--disk-size",
    "size_bytes",
    callback=read_size,
    help="How large that becomes: 20G.  [default: as the image's]",
)
@cloud_init_options
@click.option("--autostart", is_flag=True, help="Start it with the host.")
@click.option("--order", type=int, default=0, help="Lower ones start first.  [default: 0]")
@click.option("--delay", "delay_s", type=float, default=0.0, help="Seconds of rest after its start.")
@click.option("--start", is_flag=True, help="Start it at once.")
@json_option
def create(
    spec_file: Path | None,
    full: bool,
    pool: str | None,
    size_bytes: int | None,
    autostart: bool,
    order: int,
    delay_s: float,
    start: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Define a VM.

    SPEC is a specification in TOML, YAML or JSON; options add to it or take the place of what it says. Of an
    image that starts from a disk, such as debian-12, the VM gets a clone as its first disk, and a small disk
    with what cloud-init is to do: its name, users, keys, network.
    """
    from duovisor.cli.cloud_init_options import KEYS, add_seed, build_seed, has_seed
    from duovisor.cli.vm_document import build_spec_from, find_image
    from duovisor.client.service import vm_path

    client = connect()
    images: list[Image] = []

    def find(name: str) -> Image:
        images.append(find_image(client, name))
        return images[-1]

    said = {key: options.pop(key) for key in KEYS}
    seed = build_seed(said)
    spec = build_spec_from(spec_file, options, find)
    template = next((image for image in images if image.volume is not None), None)
    if seed or (template is not None and not has_seed(spec)):
        spec = add_seed(spec, seed)
    document: dict[str, Any] = {
        "spec": spec.model_dump(mode="json"),
        "autostart": {"enabled": autostart, "order": order, "delay_s": delay_s},
    }
    if template is not None:
        document |= {"linked": not full, "size_bytes": size_bytes, **({"pool": pool} if pool else {})}
        path = f"/v1/images/{quote(template.name, safe='')}/vms"
        follow(client, client.request("POST", path, document).document, quiet=as_json)
    elif full or pool or size_bytes:
        raise click.UsageError("--full, --pool and --disk-size are for an image that starts from a disk")
    else:
        client.request("POST", "/v1/vms", document)
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
@click.option("--disks", is_flag=True, help="Delete its writable volumes with it.")
@json_option
def delete(names: tuple[str, ...], force: bool, disks: bool, as_json: bool) -> None:
    """Forget VMs that do not run, with what their guests printed, their UEFI variables and their TPMs.

    Without --disks their disks stay.
    """
    from duovisor.client.service import vm_path

    client = connect()
    deleted: list[str] = []
    for name in names:
        vm = client.get(vm_path(name))
        if force and vm["status"]["pid"] is not None:
            follow(client, client.act(name, "stop"), quiet=True)
        client.request("DELETE", vm_path(name), headers=ANY_REVISION)
        gone = delete_disks(client, vm["record"]["spec"]) if disks else []
        deleted += gone
        if not as_json:
            its_disks = f"its disks {', '.join(gone)} too" if gone else "its disks stay"
            click.echo(f"{name} is deleted; {its_disks}")
    if as_json:
        print_json({"deleted": list(names), "volumes": deleted})


def delete_disks(client: ServiceClient, spec: dict[str, Any]) -> list[str]:
    """Delete the volumes that a VM wrote to; returns them. Raises ``ApiError`` for one still in use."""
    from duovisor.cli.volume_path import volume_path

    volumes = [disk["volume"] for disk in spec["disks"] if disk["volume"] and not disk["read_only"]]
    for volume in volumes:
        follow(client, client.request("DELETE", volume_path(volume)).document, quiet=True)
    return volumes


@click.command()
@click.argument("name", shell_complete=complete_vm)
@click.argument("new")
@click.option("--pool", help="Where the copies of its volumes go.  [default: where they are]")
@json_option
def clone(name: str, new: str, pool: str | None, as_json: bool) -> None:
    """Copy a VM that does not run: its definition, and each volume that it writes to.

    The copy has NICs with other addresses and without port forwards. What cloud-init did, it does once more:
    the copy is another machine, with host keys of its own.
    """
    from duovisor.client.service import vm_path

    client = connect()
    document = {"name": new, **({"pool": pool} if pool else {})}
    follow(client, client.request("POST", f"{vm_path(name)}/clone", document).document, quiet=as_json)
    vm = client.get(vm_path(new))
    print_result(vm, as_json, lambda: click.echo(f"{new} is a copy of {name}"))
