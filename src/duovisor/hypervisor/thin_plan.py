"""``specification → LaunchPlan`` for the thin VMM: a pure function, as ``build.py`` is for QEMU.

What the thin VMM cannot do is refused here, with what can.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.plan import LaunchPlan
from duovisor.hypervisor.qemu.console import CONSOLE_LOG, QMP_SOCKET
from duovisor.hypervisor.qemu.devices import device_socket
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import mac_of, nic_socket
from duovisor.hypervisor.qemu.pci import DEVICE_SLOTS, DISK_SLOTS, NIC_SLOTS, SERIAL_PORTS_SLOT
from duovisor.sandbox import ResourceLimits, Sandbox, uid_of
from duovisor.spec.vm import Accelerator, Design, Firmware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.spec.vm import VirtualMachineSpec

CPUS_MAX = 16
MEMORY_MIB_MIN = 32
COMMAND_LINE_MAX = 2047  # COMMAND_LINE_SIZE of x86 Linux is 2048
CONSOLE_CHANNEL = "console-channel"
CONSOLE_ARGUMENT = "console=hvc0"
STATE = "state"
PAGER, USERFAULT = "pager", "userfault"  # by which memory comes on demand

PROGRAM = "duovisor.hypervisor.thin"
# descriptors of files that its owner opens for it
KVM, MEMORY, KERNEL, INITRD = "kvm", "memory", "kernel", "initrd"
DEV_KVM = Path("/dev/kvm")
PACKAGES = "/packages"  # where it finds ours in its sandbox
# all seen: 20 MiB, and for each processor a stack and its share of the interpreter's arenas
PRIVATE_MIB, VCPU_PRIVATE_MIB = 128, 4
# threads are counted with those of all else that runs under the VM's uid, its successor and drivers
THREADS, DESCRIPTORS = 512, 4096

# virtio 1.2, section 5: device types; 5.1.3 and 5.1.4: a network card's features and configuration space
NET, BLOCK, CONSOLE = 1, 2, 3
NET_MAC, NET_STATUS, NET_GUEST_ANNOUNCE = 1 << 5, 1 << 16, 1 << 21
NET_QUEUES, NET_QUEUE_SIZE = 2, 256
CONSOLE_QUEUES, CONSOLE_QUEUE_SIZE = 2, 64
OTHER_QUEUES, OTHER_QUEUE_SIZE = 1, 128


@dataclass(frozen=True)
class DeviceShape:
    """What a device beside disks and cards is to the guest: virtio's number of its type, and its queues."""

    virtio_type: int
    queues: int = OTHER_QUEUES
    queue_size: int = OTHER_QUEUE_SIZE


@dataclass(frozen=True)
class ThinPaths:
    """Files on the host that the VMM uses, decided by the controlling layer.

    ``runtime`` is the folders of the interpreter's own (its standard library), ``package`` the folder of
    duovisor's package, ``libraries`` that of this machine's shared libraries. ``devices`` has the shapes of
    the specification's devices, in order.
    """

    interpreter: Path
    runtime: tuple[Path, ...]
    package: Path
    memory_file: Path
    libraries: Path = Path("/usr/lib/x86_64-linux-gnu")
    devices: tuple[DeviceShape, ...] = ()


def find_obstacle(spec: VirtualMachineSpec, accelerator: Accelerator) -> str | None:
    """Why the thin VMM cannot run this; None when it can."""
    if spec.design is not Design.MICROKERNELIZED:
        return "the thin VMM has no drivers inside: it is for the microkernelized design"
    if accelerator is not Accelerator.KVM:
        return "the thin VMM runs on KVM alone"
    if spec.firmware is not Firmware.DIRECT_KERNEL:
        return (
            f"the thin VMM loads a kernel itself and has no {spec.firmware.upper()}: firmware direct-kernel "
            "takes it off a disk of the VM's"
        )
    if spec.cdroms:
        return "the thin VMM has no CD-ROM drive"
    if spec.tpm:
        return "the thin VMM has no TPM"
    if spec.graphics:
        return "the thin VMM has no screen"
    if spec.cpus_room > spec.cpus:
        return "the thin VMM has no room for processors that come while it runs (cpus_max)"
    if spec.memory_room_mib > spec.memory_mib:
        return "the thin VMM has no room for memory that comes while it runs (memory_max)"
    if spec.cpus > CPUS_MAX:
        return f"the thin VMM has at most {CPUS_MAX} processors, not {spec.cpus}"
    if spec.memory_mib < MEMORY_MIB_MIN:
        return f"the thin VMM has at least {MEMORY_MIB_MIN} MiB of memory, not {spec.memory_mib}"
    if not all(nic.is_bridged for nic in spec.nics):
        return "the thin VMM has no user network: a network card of its needs a bridge"
    return None


def build_thin(
    spec: VirtualMachineSpec,
    accelerator: Accelerator,
    paths: ThinPaths,
    *,
    restored: bool = False,
    on_demand: bool = False,
) -> LaunchPlan:
    """Plan the thin VMM's process.

    ``restored``: it inherits the descriptor ``state`` of a saved state, and goes on; ``on_demand``: a pager
    fills its memory meanwhile. Raises ``PlanError``.
    """
    if (obstacle := find_obstacle(spec, accelerator)) is not None:
        raise PlanError(obstacle, remedy="use vmm: qemu")
    devices = build_devices(spec, paths.devices)
    channels = tuple(str(device["name"]) for device in devices)
    assert spec.kernel is not None
    files = [(KVM, DEV_KVM), (MEMORY, paths.memory_file), (KERNEL, Path(spec.kernel.path))]
    if spec.kernel.initrd:
        files.append((INITRD, Path(spec.kernel.initrd)))
    names = [name for name, _ in files]
    descriptors = [*names, QMP_SOCKET, *channels, *([STATE] if restored else [])]
    if on_demand:
        descriptors += [PAGER, USERFAULT]
    config = {
        "name": spec.name,
        "cpus": spec.cpus,
        "cpu_model": spec.cpu_model,
        "memory_mib": spec.memory_mib,
        "command_line": build_command_line(spec.kernel.arguments),
        "devices": devices,
    }
    return LaunchPlan(
        name=spec.name,
        design=spec.design,
        accelerator=accelerator,
        argv=(
            # -S -s: no site-packages; -P: nothing from the working directory; -B: nothing is written
            str(paths.interpreter), "-S", "-s", "-P", "-B", "-m", PROGRAM,
            "--config", json.dumps(config),
            "--descriptor", f"debug=@{CONSOLE_LOG}@",
            *(word for name in descriptors for word in ("--descriptor", f"{name}=@{name}@")),
        ),
        sockets=(QMP_SOCKET, *channels),
        channels=channels,
        memory_file=paths.memory_file,
        memory_mib=spec.memory_mib,
        files=tuple(files),
        sandbox=build_thin_sandbox(spec, paths),
    )  # fmt: skip


def build_command_line(given: str) -> str:
    """The kernel's command line, with the console that there is as its last. Raises ``PlanError``."""
    words = [word for word in given.split(" ") if word != CONSOLE_ARGUMENT]  # blanks within quotes stay
    command_line = " ".join([*words, CONSOLE_ARGUMENT]).strip()
    if len(command_line.encode()) > COMMAND_LINE_MAX:
        raise PlanError(f"with {CONSOLE_ARGUMENT} the command line has more than {COMMAND_LINE_MAX} bytes")
    return command_line


def build_devices(spec: VirtualMachineSpec, shapes: Sequence[DeviceShape]) -> list[dict[str, Any]]:
    """All devices as the VMM's configuration has them, at the addresses that they have in QEMU."""
    # two queues for each named port, and two for control when there is one (virtio 1.2, 5.3.2)
    queues = CONSOLE_QUEUES + (2 * (len(spec.all_ports) + 1) if spec.all_ports else 0)
    devices = [_build(CONSOLE_CHANNEL, CONSOLE, SERIAL_PORTS_SLOT, queues, CONSOLE_QUEUE_SIZE)]
    for index, disk in spec.numbered_disks():
        devices.append(_build(disk_socket(index), BLOCK, DISK_SLOTS[index], disk.queues, disk.queue_size))
    for index, nic in spec.numbered_nics():
        mac = bytes.fromhex(mac_of(spec.name, index, nic).replace(":", ""))
        card = _build(nic_socket(index), NET, NIC_SLOTS[index], NET_QUEUES, NET_QUEUE_SIZE)
        # status: link up; one pair of queues. The driver has no configuration space: MAC and link are ours
        card["config"] = (mac + b"\1\0\1\0").hex()
        card["own_features"] = NET_MAC | NET_STATUS
        card["hidden_features"] = NET_GUEST_ANNOUNCE  # it would need a control queue
        devices.append(card)
    for index, shape in enumerate(shapes):
        name, slot = device_socket(index), DEVICE_SLOTS[index]
        devices.append(_build(name, shape.virtio_type, slot, shape.queues, shape.queue_size))
    return devices


def build_thin_sandbox(spec: VirtualMachineSpec, paths: ThinPaths) -> Sandbox:
    """An empty root with the interpreter and duovisor's package; all else it is given is descriptors."""
    files = (Path("/etc/ld.so.cache"), paths.libraries, paths.interpreter, *paths.runtime)
    read_only = [(path, str(path)) for path in files]
    read_only.append((paths.package, f"{PACKAGES}/{paths.package.name}"))
    return Sandbox(
        uid=uid_of(spec.name),
        read_only=tuple(read_only),
        links=(("usr/lib", "/lib"), ("usr/lib64", "/lib64")),
        if_there=("/usr/lib64",),
        environment=(("PYTHONPATH", PACKAGES),),
        limits=build_limits(spec.cpus),
    )


def build_limits(cpus: int) -> ResourceLimits:
    """What a VMM with so many processors may use."""
    return ResourceLimits(PRIVATE_MIB + cpus * VCPU_PRIVATE_MIB, THREADS, DESCRIPTORS)


def _build(name: str, virtio_type: int, slot: int, queues: int, queue_size: int) -> dict[str, Any]:
    return {
        "name": name,
        "virtio_type": virtio_type,
        "slot": slot,
        "queues": queues,
        "queue_size": queue_size,
    }
