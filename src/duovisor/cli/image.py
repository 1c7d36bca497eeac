"""``duovisor image``: build, fetch, import, list, show and delete guest images."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import click

from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json, print_result, print_table
from duovisor.cli.volume_act import read_size

if TYPE_CHECKING:
    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image

PROBE, DEBIAN = "probe", "debian-12"
FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")

EPILOG = """
\b
Examples:
  duovisor image build debian-12
  duovisor image pull https://example.org/cloud.qcow2 --sha256 9f86d0…
  duovisor image import appliance.vmdk
  duovisor vm create --image debian-12 --name web --ssh-key ~/.ssh/id_ed25519.pub --start
"""


@click.group("image", epilog=EPILOG)
def command() -> None:
    """Build, fetch, list, show and delete guest images.

    probe starts from its kernel, in seconds. All others start from a disk: a VM gets a clone of it
    (`vm create --image NAME`), which holds only what differs, or a whole copy (--full).
    """


@command.command("build")
@click.argument("recipe", metavar="NAME", type=click.Choice((PROBE, DEBIAN)))
@click.option("--as", "name", help="What the image is called.  [default: NAME]")
@click.option("--force", is_flag=True, help="Build probe again even if it is there and up to date.")
@json_option
def build(recipe: str, name: str | None, force: bool, as_json: bool) -> None:
    """Build a guest image: probe, or debian-12.

    probe: Linux, busybox and fio, up in seconds; the kernel is the distribution's package for virtual
    machines, which is downloaded but not installed. debian-12: a whole Debian, installed by mmdebstrap from
    this host's own package sources, that starts from BIOS and UEFI, with cloud-init, guest agent and sshd.
    """
    if recipe == DEBIAN:
        name = name or recipe
        _follow_build(name, "POST", "/v1/images", {"recipe": recipe, "name": name}, as_json=as_json)
        return
    if name not in (None, PROBE):
        raise click.UsageError(f"the image {PROBE} has no other name")
    from duovisor.controlling.images.probe import build_probe_image
    from duovisor.directories import find_directories

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave through the clean-up
    image = build_probe_image(find_directories(), _print_progress, force=force)
    print_result(_as_document(image), as_json, lambda: click.echo(f"image {image.name} is in {image.folder}"))


@command.command("pull")
@click.argument("url")
@click.option("--sha256", required=True, help="What the file must have, in hexadecimal.")
@click.option("--as", "name", help="What the image is called.  [default: the file's name]")
@click.option("--user", help="Who logs in, as the image's documentation says.")
@click.option(
    "--max-size",
    "max_bytes",
    callback=read_size,
    default="64G",
    show_default=True,
    help="Refuse a larger one.",
)
@json_option
def pull(url: str, sha256: str, name: str | None, user: str | None, max_bytes: int, as_json: bool) -> None:
    """Fetch a cloud image: qcow2, raw, VMDK, VHD, VHDX or VDI, by http, https or file.

    The service fetches it. Nothing can be seen of it before its SHA-256 is found right; what has come of one
    that broke off is kept, and the next pull goes on there.
    """
    name = name or _name_of(url.rpartition("/")[2])
    document = {"url": url, "sha256": sha256.lower(), "max_bytes": max_bytes}
    if user:
        document["user"] = user
    _follow_build(name, "POST", f"{_path(name)}/pull", document, as_json=as_json)


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--as", "name", help="What the image is called.  [default: FILE's name]")
@click.option(
    "--format", "image_format", type=click.Choice(FORMATS), help="Of FILE; else its signature tells."
)
@click.option("--sha256", help="What FILE must have; checked where it arrives.")
@click.option("--user", help="Who logs in.")
@json_option
def import_command(
    file: Path,
    name: str | None,
    image_format: str | None,
    sha256: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Make an image of a disk in FILE, which is sent to the service."""
    from duovisor.cli.progress import follow
    from duovisor.cli.volume_content import show_transfer
    from duovisor.client.service import build_path
    from duovisor.client.transfer import send_file

    name = name or _name_of(file.name)
    client = connect()
    query = {"format": image_format, "sha256": sha256 and sha256.lower(), "user": user}
    path = build_path(f"{_path(name)}/content", query)
    with show_transfer(f"import {file.name}", quiet=as_json) as show:
        operation = send_file(client, path, file, show)
    operation = follow(client, operation, quiet=as_json)
    _say_built(client, name, operation, as_json=as_json)


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the images of this host."""
    from duovisor.controlling.images.errors import ImageBrokenError
    from duovisor.controlling.images.store import list_names, load_image
    from duovisor.directories import find_directories

    directories = find_directories()
    images, rows = [], []
    for name in list_names(directories):
        try:
            image = load_image(name, directories)
        except ImageBrokenError:
            rows.append((name, "-", "-", "-", "broken"))
            images.append({"name": name, "broken": True})
        else:
            kind = f"kernel {image.kernel_version}" if image.volume is None else "disk"
            rows.append((name, kind, _show_size(image), _show_time(image), image.description))
            images.append({**_as_document(image), "broken": False})
    if as_json:
        print_json(images)
    elif rows:
        print_table(("NAME", "STARTS FROM", "SIZE", "BUILT", "DESCRIPTION"), rows)
    else:
        click.echo("no images; try: duovisor image build probe")


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show an image and whether its files are as they were built."""
    from duovisor.controlling.images.store import find_damage, load_image
    from duovisor.directories import find_directories

    image = load_image(name, find_directories())
    damaged = find_damage(image)
    document = {**_as_document(image), "damaged": damaged}
    print_result(document, as_json, lambda: _show_image(image, damaged))


@command.command("delete")
@click.argument("name")
@json_option
def delete(name: str, as_json: bool) -> None:
    """Delete an image of which there is no linked clone; a VM that runs from its kernel goes on."""
    from duovisor.controlling.images.errors import ImageBrokenError
    from duovisor.controlling.images.store import delete_image, load_image
    from duovisor.directories import find_directories

    volume = None
    with contextlib.suppress(ImageBrokenError):
        volume = load_image(name, find_directories()).volume
    if volume is None:
        delete_image(name, find_directories())
    else:  # the service knows who depends on its disk
        connect().request("DELETE", _path(name))
    print_result({"deleted": name}, as_json, lambda: click.echo(f"image {name} is deleted"))


def _follow_build(name: str, method: str, path: str, document: dict[str, Any], *, as_json: bool) -> None:
    from duovisor.cli.progress import follow

    client = connect()
    operation = follow(client, client.request(method, path, document).document, quiet=as_json)
    _say_built(client, name, operation, as_json=as_json)


def _say_built(client: ServiceClient, name: str, operation: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(client.get(_path(name)))
    else:
        click.echo(f"image {name}: {operation['message']}")


def _path(name: str) -> str:
    return f"/v1/images/{quote(name, safe='')}"


def _name_of(file: str) -> str:
    return Path(unquote(file.partition("?")[0])).stem


def _print_progress(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _as_document(image: Image) -> dict[str, Any]:
    return {**image.model_dump(mode="json"), "folder": str(image.folder), "size_bytes": image.size_bytes}


def _show_image(image: Image, damaged: list[str]) -> None:
    disks = ", ".join(
        f"{disk.file} (serial {disk.serial or '-'}, {'read only' if disk.read_only else 'writable'})"
        for disk in image.disks
    )
    files = (
        f"{len(image.file_paths)}, as they were built" if not damaged else f"damaged: {', '.join(damaged)}"
    )
    rows = {
        "name": image.name,
        "description": image.description,
        "source": image.source,
        "disk": f"volume {image.volume}" if image.volume else "",
        "user": image.user,
        "kernel": (image.kernel_version or image.kernel or "") if image.kernel else "",
        "command line": image.command_line,
        "disks": disks if image.volume else disks or "none",
        "built": _show_time(image),
        "size": _show_size(image),
        "files": files,
        "folder": str(image.folder),
    }
    for title, value in rows.items():
        if value:
            click.echo(f"{click.style(f'{title:<14}', dim=True)}{value}")


def _show_size(image: Image) -> str:
    return f"{image.size_bytes / (1 << 20):.0f} MiB"


def _show_time(image: Image) -> str:
    return image.built_at.astimezone().strftime("%Y-%m-%d %H:%M")
