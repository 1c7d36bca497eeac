"""The options that say what a guest is told at its first boot, and the document they add up to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duovisor.spec.vm import VirtualMachineSpec

Command = TypeVar("Command", bound="Callable[..., Any]")

KEYS = ("user", "ssh_keys", "user_data", "network_config")

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = (
    click.option("--user", help="Who logs in: made with sudo.  [default: the image's own user]"),
    click.option(
        "--ssh-key",
        "ssh_keys",
        multiple=True,
        type=_FILE,
        help="A file of public SSH keys, for that user: ~/.ssh/id_ed25519.pub. Repeatable.",
    ),
    click.option("--user-data", type=_FILE, help="cloud-init's user-data; goes before the other options."),
    click.option(
        "--network-config", type=_FILE, help="cloud-init's network configuration in YAML.  [default: DHCP]"
    ),
)


def cloud_init_options(command: Command) -> Command:
    """Give a command the options of a guest's first boot."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_seed(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say, as ``cloud_init`` of a disk. Raises ``SpecFileError`` or ``ClickException``."""
    from duovisor.spec.loading import load_document

    document: dict[str, Any] = {}
    if options["user"]:
        document["user"] = options["user"]
    if options["ssh_keys"]:
        document["ssh_keys"] = [key for file in options["ssh_keys"] for key in _read_keys(file)]
    if options["user_data"]:
        document["user_data"] = _read(options["user_data"])
    if options["network_config"]:
        document["network"] = load_document(options["network_config"])
    return document


def add_seed(spec: VirtualMachineSpec, seed: dict[str, Any]) -> VirtualMachineSpec:
    """A specification with a seed in the place of one that it has, or behind its disks.

    Raises ``SpecError``.
    """
    from duovisor.spec.loading import build_spec

    document = spec.model_dump(mode="json")
    disks = [disk for disk in document["disks"] if disk["cloud_init"] is None]
    return build_spec({**document, "disks": [*disks, {"cloud_init": seed}]})


def has_seed(spec: VirtualMachineSpec) -> bool:
    """Whether its guest is told something at its first boot."""
    return any(disk.cloud_init is not None for disk in spec.disks)


def _read_keys(file: Path) -> list[str]:
    text = _read(file)
    if "PRIVATE KEY" in text:
        raise click.ClickException(f"{file} is a private SSH key; give the public one, {file}.pub")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"cannot read {file}: {error}") from error
