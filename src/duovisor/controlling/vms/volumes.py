"""What the manager needs of whoever has the volumes: a specification whose volumes are found and held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.errors import DiskFileError, NetworkError
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import Design, VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from duovisor.controlling.vms.active import ActiveVm

Grow = Callable[[], Awaitable[int]]
Lend = Callable[[VirtualMachineSpec], AbstractAsyncContextManager[VirtualMachineSpec]]


@asynccontextmanager
async def lend_none(spec: VirtualMachineSpec) -> AsyncIterator[VirtualMachineSpec]:
    """Where there are no volumes or networks. Raises ``DiskFileError`` for a disk that names one."""
    for disk in spec.media:
        if disk.volume is not None:
            raise DiskFileError(f"there is no volume {disk.volume} here")
    yield spec


def check_definition(spec: VirtualMachineSpec) -> None:
    """As ``check_places``, and raises ``DiskFileError`` for a kernel on a disk that the VM has not."""
    check_places(spec)
    _check_kernel(spec)


def check_places(spec: VirtualMachineSpec) -> None:
    """Raises ``DiskFileError`` or ``NetworkError`` for a definition with what each start finds anew."""
    for disk in spec.media:
        if disk.is_found and disk.path:
            other = f"the volume {disk.volume}" if disk.volume is not None else "cloud_init"
            raise DiskFileError(f"a disk has both {other} and the path {disk.path}", remedy="leave path out")
    for index, nic in spec.numbered_nics():
        if nic.managed_network is not None and (nic.bridge is not None or nic.address is not None):
            key = "bridge" if nic.bridge is not None else "address"
            raise NetworkError(
                f"nic{index} has both the network {nic.managed_network} and a {key}",
                remedy=f"leave {key} out",
            )


def _check_kernel(spec: VirtualMachineSpec) -> None:
    if spec.kernel is None or spec.kernel.disk is None:
        return
    if spec.kernel != spec.kernel.without_places():
        raise DiskFileError(
            f"the kernel is taken from disk{spec.kernel.disk} at each start, and has a place besides",
            remedy="leave kernel.path, initrd and found_arguments out, or kernel.disk",
        )
    if spec.kernel.disk not in dict(spec.numbered_disks()):
        raise DiskFileError(
            f"the kernel is to be on disk{spec.kernel.disk}, which the VM has not",
            remedy="kernel.disk is the number of one of its disks",
        )


def find_disk(active: Iterable[ActiveVm], volume: str) -> tuple[ActiveVm, str]:
    """The running VM that writes to a volume, and its disk's name; pure. Raises ``WrongStateError``."""
    for vm in active:
        for index, disk in vm.machine.spec.numbered_disks():
            if disk.volume == volume and not disk.read_only:
                return vm, disk_socket(index)
    raise WrongStateError(
        f"volume {volume} is in use, and not by a VM that names it", remedy="`fuser -v FILE` names the user"
    )


async def grow_disk(vm: ActiveVm, disk: str, grow_first: Grow) -> None:
    """Make a running VM's disk larger, and its guest see it. Raises ``WrongStateError`` or ``QmpError``.

    ``grow_first`` makes room for it, and says how many bytes there are then.
    """
    if vm.machine.spec.design is not Design.MONOLITHIC:
        raise WrongStateError(
            f"cannot resize {disk} of {vm.name} while it runs: its driver serves the size that it began with",
            remedy=f"duovisor vm shutdown {vm.name}; or vm switch --design monolithic first",
        )
    await vm.machine.vmm.resize_disk(disk, await grow_first())
