"""``duovisor disk-key new``: keys of encrypted disks."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Make keys for encrypted disks."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Write a random key to FILE, which must not exist; its owner alone may read it.

    Who loses the key loses the disk: keep a copy elsewhere.
    """
    from duovisor.controlling.key_files import create_key

    create_key(file)
    click.echo(f"wrote {file}; without it, what is on its disk is lost: keep a copy elsewhere")
    click.echo(f"duovisor run --disk PATH,driver=encrypted,key_file={file}")
