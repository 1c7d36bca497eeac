"""``duovisor image``: build, list, show and delete guest images."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from duovisor.cli.output import json_option, print_json, print_result, print_table

if TYPE_CHECKING:
    from duovisor.controlling.images.image import Image

BUILDABLE = ("probe",)


@click.group("image")
def command() -> None:
    """Build, list, show and delete guest images."""


@command.command("build")
@click.argument("name", type=click.Choice(BUILDABLE))
@click.option("--force", is_flag=True, help="Build again even if the image is there and up to date.")
@json_option
def build(name: str, force: bool, as_json: bool) -> None:
    """Build a guest image; probe: Linux, busybox and fio, up in seconds.

    The kernel is the distribution's package for virtual machines, which is downloaded but not installed.
    """
    from duovisor.controlling.images.probe import build_probe_image
    from duovisor.directories import find_directories

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave through the clean-up
    image = build_probe_image(find_directories(), _print_progress, force=force)
    print_result(_as_document(image), as_json, lambda: click.echo(f"image {image.name} is in {image.folder}"))


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
            rows.append((name, image.kernel_version, _show_size(image), _show_time(image), image.description))
            images.append({**_as_document(image), "broken": False})
    if as_json:
        print_json(images)
    elif rows:
        print_table(("NAME", "KERNEL", "SIZE", "BUILT", "DESCRIPTION"), rows)
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
    """Delete an image; a VM that runs from it goes on."""
    from duovisor.controlling.images.store import delete_image
    from duovisor.directories import find_directories

    delete_image(name, find_directories())
    print_result({"deleted": name}, as_json, lambda: click.echo(f"image {name} is deleted"))


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
        "kernel": f"{image.kernel_version} ({image.source})",
        "command line": image.command_line,
        "disks": disks or "none",
        "built": _show_time(image),
        "size": _show_size(image),
        "files": files,
        "folder": str(image.folder),
    }
    for title, value in rows.items():
        click.echo(f"{click.style(f'{title:<14}', dim=True)}{value}")


def _show_size(image: Image) -> str:
    return f"{image.size_bytes / (1 << 20):.0f} MiB"


def _show_time(image: Image) -> str:
    return image.built_at.astimezone().strftime("%Y-%m-%d %H:%M")
