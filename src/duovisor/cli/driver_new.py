"""``duovisor driver new``: a driver to begin with, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

TYPES = {"rng": 4, "i2c": 34, "gpio": 41}
QUEUES = {"gpio": 2}  # virtio 1.2, section 5.18.2: one for requests, one for what comes by itself

_DRIVER = '''"""{name}: a driver for a virtio device of type {kind} (docs/write-a-driver.md)."""

from duovisor.channel.device import VirtioDevice


class {class_name}(VirtioDevice):
    device_id = {device_id}{queues}

    def __init__(self, *, byte: int = 0x2A) -> None:
        self.byte = byte  # from the VM's specification: options: {{byte: 7}}
        self.requests = 0

    def handle_request(self, chain) -> int:
        """Answer one request of the guest: read chain.readable, fill chain.writable."""
        self.requests += 1
        written = 0
        for piece in chain.writable:
            piece[:] = bytes([self.byte]) * len(piece)
            written += len(piece)
        return written

    def statistics(self) -> dict[str, object]:
        """What ``duovisor`` tells of this device."""
        return {{"requests": self.requests}}
'''

_TEST = '''"""The driver {name}, without a guest."""

from {name} import {class_name}

from duovisor.channel.trial import Trial


def test_it_fills_what_the_guest_offers() -> None:
    with Trial({class_name}(byte=7)) as trial:
        assert trial.ask(room=16) == bytes([7]) * 16
        assert trial.ask(b"some request", room=4) == bytes([7]) * 4
        assert trial.device.statistics() == {{"requests": 2}}
'''


@click.command("new")
@click.argument("name")
@click.option("--type", "kind", type=click.Choice(list(TYPES)), default="rng", help="[default: rng]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="Where to write.  [default: here]",
)
def command(name: str, kind: str, folder: Path) -> None:
    """Write a driver to begin with, NAME.py, and its test.

    Its class answers every request with the same byte. Nothing that exists is overwritten.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise click.UsageError(f"{name!r} is not a module's name: a-z, 0-9 and _, a letter first")
    texts = {folder / f"{name}.py": _DRIVER, folder / f"test_{name}.py": _TEST}
    for path in texts:
        if path.exists():
            raise click.UsageError(f"{path} exists already")
    for path, text in texts.items():
        path.write_text(build_text(text, name, kind))
        click.echo(f"wrote {path}")
    click.echo(f"pytest {folder / f'test_{name}.py'} tries it; in a VM's specification:")
    click.echo(f"devices: [{{driver: {(folder / f'{name}.py').absolute()}}}]")


def build_text(template: str, name: str, kind: str) -> str:
    """A template with the driver's name and type in it; pure."""
    queues = f"\n    queues = {QUEUES[kind]}" if kind in QUEUES else ""
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return template.format(name=name, kind=kind, class_name=class_name, device_id=TYPES[kind], queues=queues)
