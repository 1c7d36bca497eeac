"""A launch plan: everything about a VMM process that is decided before anything is started.

A plan is data. It is built by a pure function (``hypervisor/build.py``), compared with golden files, shown
to the user, and carried out by ``hypervisor/vmm.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.sandbox import Sandbox
    from duovisor.spec.vm import Accelerator, Design

TAKES_DESCRIPTOR = ("-add-fd", "-chardev", "-netdev", "--descriptor")


@dataclass(frozen=True)
class LaunchPlan:
    """How one VMM process is started.

    ``argv`` holds ``@NAME@`` in an ``-add-fd``, ``-chardev``, ``-netdev`` or ``--descriptor`` wherever the
    number of an inherited descriptor belongs. One is the console's log; ``taps`` names those that the
    controlling layer opens, each a TAP; ``sockets`` names the others: each is a Unix stream socket, bound and
    listening as ``NAME.sock`` in the VM's run folder before the VMM starts, so that whoever connects needs no
    retry. ``channels`` are those of them on which a driver serves. The sockets in ``bound`` the VMM binds
    itself when it starts, in the folder ``channels`` of the run folder; a driver serves on each of them, too.
    ``files`` are opened for the VMM, by the names of their descriptors. ``modules_mib`` are the sizes of the
    memory modules that came to the guest since it booted, in the order of their slots.
    """

    name: str
    design: Design
    accelerator: Accelerator
    argv: tuple[str, ...]
    sockets: tuple[str, ...]
    channels: tuple[str, ...]
    memory_file: Path
    memory_mib: int
    sandbox: Sandbox | None
    taps: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()
    modules_mib: tuple[int, ...] = ()

    def resolve_argv(self, descriptors: Mapping[str, int]) -> tuple[str, ...]:
        """The command line with every ``@NAME@`` replaced by the descriptor's number."""
        resolved = [self.argv[0]]
        for option, argument in pairwise(self.argv):
            if option in TAKES_DESCRIPTOR:  # elsewhere the same text may stand in what the user wrote
                for name, number in descriptors.items():
                    argument = argument.replace(f"@{name}@", str(number))
            resolved.append(argument)
        return tuple(resolved)

    def without(self, name: str) -> LaunchPlan:
        """The same VMM without a socket of that name."""
        sockets, channels, bound = (
            tuple(each for each in names if each != name)
            for names in (self.sockets, self.channels, self.bound)
        )
        return replace(self, sockets=sockets, channels=channels, bound=bound)

    def as_successor(self) -> LaunchPlan:
        """The same VMM, but waiting for the state of another one's devices."""
        return replace(self, argv=(*self.argv, "-incoming", "defer"))


@dataclass(frozen=True)
class VmmPaths:
    """Files on the host that the VMM uses, decided by the controlling layer.

    ``block_devices`` holds those disk paths of the specification that are block devices, not files, and
    ``chains`` the images of each disk with those that they are based on;
    ``device_types`` has virtio's number of the type of each device beside disks and network cards;
    ``libraries`` is the folder of this machine's shared libraries, ``channels`` where the VMM binds
    sockets, ``media`` where media servers listen. ``module_files`` are for memory modules, of which those
    of the sizes ``modules_mib`` have come.
    """

    qemu: Path
    memory_file: Path
    uefi_code: Path | None = None
    uefi_vars: Path | None = None
    block_devices: frozenset[str] = frozenset()
    chains: tuple[tuple[ImageFile, ...], ...] = ()
    device_types: tuple[int, ...] = ()
    libraries: Path = Path("/usr/lib/x86_64-linux-gnu")
    channels: Path = Path("/run/duovisor/channels")
    media: Path = Path("/run/duovisor/media")
    module_files: tuple[Path, ...] = ()
    modules_mib: tuple[int, ...] = ()
