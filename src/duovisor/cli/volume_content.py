"""``duovisor volume upload`` and ``download``."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from duovisor.cli.completion import complete_volume
from duovisor.cli.connection import connect
from duovisor.cli.output import json_option, print_json, print_result
from duovisor.cli.progress import follow, show_progress
from duovisor.cli.volume_path import parse_volume, volume_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")
FULL, STEP = 100, 5


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("volume", required=False)
@click.option(
    "--format", "image_format", type=click.Choice(FORMATS), help="Of FILE; else its signature tells."
)
@click.option(
    "--to",
    type=click.Choice(("qcow2", "raw")),
    help="Of the volume.  [default: raw of raw or on LVM, or qcow2]",
)
@click.option("--sha256", help="What FILE must have; checked where it arrives.")
@click.option("--read-only", is_flag=True, help="Nobody writes to it: for an ISO image, or a template.")
@json_option
def upload(
    file: Path,
    volume: str | None,
    image_format: str | None,
    to: str | None,
    sha256: str | None,
    read_only: bool,
    as_json: bool,
) -> None:
    """Make a volume of an image: qcow2, raw, VMDK, VHD, VHDX, VDI or ISO.

    VOLUME is FILE's name without its suffix if it is left out. An image that is based on others, or consists
    of several files, is refused. Of qcow2, internal snapshots are left behind.
    """
    from duovisor.client.service import build_path
    from duovisor.client.transfer import send_file

    client = connect()
    volume = volume or file.stem
    query = {
        "format": image_format, "to": to, "sha256": sha256 and sha256.lower(), "read_only": read_only or None,
    }  # fmt: skip
    path = build_path(f"{volume_path(volume)}/content", query)
    with show_transfer(f"upload {file.name}", quiet=as_json) as show:
        operation = send_file(client, path, file, show)
    operation = follow(client, operation, quiet=as_json)
    if as_json:
        print_json(operation)
    else:
        click.echo(f"volume {parse_volume(volume)}: {operation['message']}")


@click.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@json_option
def download(volume: str, file: Path, force: bool, as_json: bool) -> None:
    """Fetch a volume's file as it is, and check its SHA-256; no VM may write to it meanwhile.

    FILE appears when it is whole. A linked clone has to become a full one first.
    """
    from duovisor.client.transfer import fetch_file

    if file.exists() and not force:
        raise click.ClickException(f"{file} is there already; --force replaces it")
    client = connect()
    path = volume_path(volume)
    computed = follow(client, client.request("POST", f"{path}/checksum").document, quiet=as_json)
    sha256 = computed["message"].removeprefix("sha256 ")
    with show_transfer(f"download {parse_volume(volume)}", quiet=as_json) as show:
        size_bytes = fetch_file(client, f"{path}/content", file, sha256, show)
    document = {"volume": str(parse_volume(volume)), "file": str(file), "bytes": size_bytes, "sha256": sha256}
    print_result(document, as_json, lambda: click.echo(f"{file}: {size_bytes} bytes, sha256 {sha256}"))


@contextmanager
def show_transfer(title: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields what shows how many bytes of how many have gone."""
    with show_progress(title, quiet=quiet) as show:
        last = -1

        def show_bytes(done: int, size_bytes: int) -> None:
            nonlocal last
            percent = FULL * done // max(size_bytes, 1)
            if percent // STEP != last:  # where there is no terminal, each is a line
                last = percent // STEP
                show({"state": "running", "progress": percent, "message": f"{done >> 20} MiB"})

        yield show_bytes
