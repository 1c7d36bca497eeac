"""``duovisor driver new``: a driver to begin with, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

DISK = "block"
TYPES = {"rng": 4, DISK: 2, "i2c": 34, "gpio": 41}
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

_DISK = '''"""{name}: a driver for a disk (docs/write-a-driver.md)."""

from duovisor.controlling.drivers.storage_device import StorageDevice


class {class_name}(StorageDevice):
    def __init__(self, disk, *, flip: int = 0xFF) -> None:
        super().__init__(disk)  # as large as its image; one without an image needs size_bytes=…
        self.table = bytes(byte ^ flip for byte in range(256))  # options: {{flip: 7}}
        self.reads = self.writes = 0

    def read(self, offset: int, length: int) -> bytes:
        """What the guest reads; offset and length are in bytes, multiples of 512."""
        self.reads += 1
        return super().read(offset, length).translate(self.table)

    def write(self, offset: int, data: bytes) -> None:
        """What the guest writes. It must be safe when flush has returned, which here is the image's."""
        self.writes += 1
        super().write(offset, data.translate(self.table))

    def statistics(self) -> dict[str, object]:
        """What ``duovisor`` tells of this disk."""
        return {{"reads": self.reads, "writes": self.writes}}
'''

_DISK_TEST = '''"""The driver {name}, without a guest."""

from {name} import {class_name}

from duovisor.channel.trial import Trial
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.controlling.drivers.block_protocol import Disk
from duovisor.controlling.drivers.image import open_image


def test_what_is_written_is_read(tmp_path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(bytes(1 << 20))
    with file.open("r+b") as image, Trial({class_name}(Disk(open_image(image.fileno())), flip=1)) as trial:
        client = BlockClient(trial.front)
        client.write(8, b"text" * 128)
        client.flush()
        assert client.read(8, 512) == b"text" * 128
        assert trial.device.statistics() == {{"reads": 1, "writes": 1}}
    assert file.read_bytes()[4096:4100] == b"udyu"
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

    Its class answers every request with the same byte; that of a disk keeps its bytes inverted in an image.
    Nothing that exists is overwritten.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise click.UsageError(f"{name!r} is not a module's name: a-z, 0-9 and _, a letter first")
    driver, test = (_DISK, _DISK_TEST) if kind == DISK else (_DRIVER, _TEST)
    texts = {folder / f"{name}.py": driver, folder / f"test_{name}.py": test}
    for path in texts:
        if path.exists():
            raise click.UsageError(f"{path} exists already")
    for path, text in texts.items():
        path.write_text(build_text(text, name, kind))
        click.echo(f"wrote {path}")
    click.echo(f"pytest {folder / f'test_{name}.py'} tries it; in a VM's specification:")
    file = (folder / f"{name}.py").absolute()
    click.echo(
        f"disks: [{{path: IMAGE, driver: {file}}}]" if kind == DISK else f"devices: [{{driver: {file}}}]"
    )


def build_text(template: str, name: str, kind: str) -> str:
    """A template with the driver's name and type in it; pure."""
    queues = f"\n    queues = {QUEUES[kind]}" if kind in QUEUES else ""
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return template.format(name=name, kind=kind, class_name=class_name, device_id=TYPES[kind], queues=queues)
