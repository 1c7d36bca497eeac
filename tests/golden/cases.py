"""The virtual machines whose launch plans are kept as golden files: what is typed, and a file for some.

Between them they use every field of the specification and every option of ``duovisor run``; a test says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.cli.run import command
from duovisor.cli.vm_document import build_spec_from
from duovisor.controlling.images.store import load_image
from duovisor.directories import Directories

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from duovisor.spec.vm import Design, VirtualMachineSpec


@dataclass(frozen=True)
class Case:
    """``arguments`` of ``duovisor run``; ``document`` is the TOML file that ``SPEC`` stands for.

    ``refused_inside``: the monolithic design cannot have it.
    """

    name: str
    arguments: tuple[str, ...]
    document: str = ""
    refused_inside: bool = False


CASES = (
    Case("minimal", ("--name", "minimal")),
    Case(
        "disks",
        (
            "--name", "disks", "--cpus", "4", "--cpu-model", "x86-64-v3", "--memory", "2G",
            "--accelerator", "auto", "--vmm", "qemu",
            "--disk", "/srv/system.raw,serial=system,queues=4,queue_size=1024",
            "--disk", "/srv/data.raw,cache=none,on_driver_failure=report,driver_hang_s=5",
            "--disk", "/srv/media.iso,read_only,format=raw",
            "--disk", "/dev/block-device,serial=lun",
        ),
    ),
    Case(
        "formats",
        (
            "--name", "formats",
            "--disk", "/srv/system.qcow2,format=qcow2,cache=none",
            "--disk", "/srv/from-vsphere.vmdk,format=vmdk,read_only",
            "--disk", "/srv/from-hyper-v.vhdx,format=vhdx",
            "--disk", "/srv/from-virtualbox.vdi,format=vdi",
        ),
    ),
    Case(
        "network",
        ("--name", "network", "--nic", "user", "--nic", "user",
         "--forward", "2222:22", "--forward", "udp:53:5353"),
    ),
    Case(
        "bridge",
        ("SPEC", "--nic", "bridge=br-lan,mac=52:54:00:12:34:57"),
        """
name = "bridge"
[[nics]]
bridge = "br0"
mac_filter = false
vlan = 7
address = "10.0.0.7"
firewall = ["in tcp 22 from 10.0.0.0/8"]
in_limit = "50M"
out_limit = "500K"
on_driver_failure = "pause"
driver_hang_s = 5
""",
    ),
    Case(
        "cdroms",
        (
            "--name", "cdroms", "--cdrom", "/srv/install.iso", "--cdrom", "empty", "--nic", "user",
            "--disk", "/srv/system.raw", "--boot-order", "cdrom,network,disk",
        ),
    ),
    Case("uefi", ("--name", "uefi", "--firmware", "uefi", "--disk", "/srv/system.raw")),
    Case(
        "secure-boot",
        ("--name", "secure-boot", "--secure-boot", "--tpm", "--guest-agent", "--disk", "/srv/system.raw"),
    ),
    Case(
        "kernel",
        ("--name", "kernel", "--kernel", "/boot/vmlinuz", "--initrd", "/boot/initrd.img",
         "--append", "console=ttyS0 root=/dev/vda,rw @qmp@"),
    ),
    Case("image", ("--name", "image", "--image", "probe", "--disk", "/srv/scratch.raw,serial=scratch")),
    Case(
        "drivers",
        ("SPEC", "--disk", "/srv/secret.raw,driver=encrypted,key_file=/srv/secret.key,sector_bytes=4096"),
        """
name = "drivers"
[[disks]]
driver = "/srv/mine.py"
options = {flip = 3}
""",
        refused_inside=True,
    ),
    Case(
        "devices",
        ("SPEC", "--device", "rng"),
        """
name = "devices"
[[devices]]
driver = "rng"
[[devices]]
driver = "rng"
on_driver_failure = "pause"
driver_hang_s = 5
""",
    ),
    Case(
        "screen",
        (
            "--name", "web", "--accelerator", "tcg", "--graphics", "--cpus-max", "4",
            "--memory", "1G", "--memory-max", "8G",
        ),
    ),
    Case(
        "file",
        ("SPEC", "--forward", "8443:443"),
        """
name = "file.example"
accelerator = "tcg"
cpus = 2
cpus_max = 6
cpu_weight = 50
cpu_limit = 1.5
cpu_reservation = 0.5
memory_limit = "3G"
memory_mib = 1024
firmware = "direct-kernel"
ports = ["org.qemu.guest_agent.0", "example.port"]
[kernel]
path = "/boot/vmlinuz"
command_line = "console=ttyS0"
[[disks]]
path = "/srv/a \\"quoted\\", odd @disk0@.raw"
read_only = true
slot = 7
iops_limit = 500
bandwidth_limit = "50M"
[[nics]]
slot = 5
network = "user"
mac = "52:54:00:12:34:56"
[[nics.forward]]
protocol = "udp"
host_address = "0.0.0.0"
host_port = 5353
guest_port = 53
""",
    ),
)  # fmt: skip


def parse_arguments(case: Case, folder: Path) -> click.Context:
    """What click makes of the case's command line; ``SPEC`` becomes a file in ``folder``."""
    spec_file = folder / f"{case.name}.toml"
    spec_file.write_text(case.document)
    arguments = [str(spec_file) if argument == "SPEC" else argument for argument in case.arguments]
    return command.make_context("run", arguments)


def build_case_spec(case: Case, folder: Path, design: Design) -> VirtualMachineSpec:
    """The specification that the case means, in one of the designs."""
    with parse_arguments(case, folder) as context:
        options = {**context.params, "design": str(design)}
    spec_file = options.pop("spec_file")
    directories = make_image(folder)
    return build_spec_from(spec_file, options, lambda name: load_image(name, directories))


def make_image(state: Path) -> Directories:
    """Folders in which an image ``probe`` lies, with a kernel, an initrd and one disk."""
    directories = Directories(state=state, runtime=state, cache=state)
    folder = directories.images / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "initrd", "tools.raw"):
        (folder / name).touch()
    image = {
        "name": "probe",
        "description": "for tests",
        "kernel": "vmlinuz",
        "initrd": "initrd",
        "command_line": "console=ttyS0 quiet",
        "disks": [{"file": "tools.raw", "read_only": True, "serial": "tools"}],
        "kernel_version": "6.1",
        "source": "none",
        "recipe": "none",
        "built_at": "2026-01-01T00:00:00Z",
        "sha256": {},
    }
    (folder / "image.json").write_text(json.dumps(image))
    return directories
