"""``duovisor volume``: disks by name. Each command's module is imported when it is typed."""

from __future__ import annotations

import click

from duovisor.cli.lazy_group import LazyGroup

COMMANDS = {
    "list": ("volume_list:list_command", "List volumes."),
    "show": ("volume_list:show", "Show a volume: its size, and who needs it."),
    "create": ("volume_act:create", "Make an empty volume."),
    "resize": ("volume_act:resize", "Make a volume larger, under a running VM too."),
    "clone": ("volume_act:clone", "Copy a volume, or base a new one on it."),
    "delete": ("volume_act:delete", "Delete volumes with their files."),
    "upload": ("volume_content:upload", "Make a volume of an image: qcow2, raw, VMDK, VHD, VHDX, VDI, ISO."),
    "download": ("volume_content:download", "Fetch a volume's file, and check it."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Make, clone, upload and delete volumes, the disks of VMs.

    \b
    A volume is POOL/NAME; NAME alone is in the pool default, made when it is first used.
      duovisor volume upload debian.vmdk debian            converted to qcow2 on the way
      duovisor volume clone debian web --linked            at once; holds only what differs
      duovisor vm create --name web --disk volume=web --start
    """
