"""A VMM from our own plan without a machine around it: no sandbox, its drivers in threads of this process.

For what a machine never does: two VMMs that share one guest's memory, and QEMUs that are not installed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.channel.backend import Backend
from duovisor.controlling.channel_socket import connect_channel, wait_channels
from duovisor.controlling.drivers.block import create_device
from duovisor.controlling.drivers.net import create_net_device
from duovisor.hypervisor.build import build_launch_plan
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.qemu.console import CONSOLE_LOG, QMP_SOCKET, port_socket
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.hypervisor.qmp import Qmp
from duovisor.spec.vm import Accelerator, Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from duovisor.channel.device import VirtioDevice
    from duovisor.hardware.qemu import QemuAbilities
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.process import Process
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec


@dataclass(frozen=True)
class Program:
    """A QEMU: the binary, its abilities, and ``options`` before all others (as ``-L``)."""

    path: Path
    abilities: QemuAbilities
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class BareVmm:
    """A QEMU that was greeted and whose processors were never started."""

    qmp: Qmp
    process: Process
    folder: Path
    spec: VirtualMachineSpec

    def port_path(self, port: str) -> Path:
        """The Unix socket of the virtio-serial port with this name."""
        return self.folder / f"{port_socket(self.spec.ports.index(port))}.sock"


@asynccontextmanager
async def start_bare_vmm(
    spec: VirtualMachineSpec,
    program: Program,
    folder: Path,
    memory: Path,
    taps: Mapping[str, int],
    *options: str,
) -> AsyncIterator[BareVmm]:
    """Start a VMM in a new ``folder``, its guest's memory in the file ``memory``; the block ends it."""
    (folder / "channels").mkdir(parents=True)
    paths = VmmPaths(qemu=program.path, memory_file=memory, channels=folder / "channels")
    plan = build_launch_plan(spec, program.abilities, Accelerator.TCG, paths)
    async with AsyncExitStack() as stack:
        served = stack.enter_context(ExitStack())
        descriptors = bind_sockets(plan, folder, stack)
        inside = spec.design is Design.MONOLITHIC
        if not inside:
            for index, disk in enumerate(spec.disks):
                serve(create_disk(disk), connect_channel(folder / f"{disk_socket(index)}.sock"), served)
        given = {**descriptors, **(taps if inside else {})}
        argv = (*build_bare_argv(plan, given, program), *options)
        vmm = process.start(argv, role="vmm", log=folder / "vmm.log", pass_fds=tuple(given.values()))
        stack.push_async_callback(vmm.kill)
        if plan.bound:
            await wait_channels([folder / "channels" / f"{name}.sock" for name in plan.bound], vmm)
            for index in range(len(spec.nics)):
                card = create_net_device([], {"tap": os.dup(taps[nic_socket(index)])})
                socket_path = folder / "channels" / f"{nic_socket(index)}.sock"
                serve(card, connect_channel(socket_path), served)
        qmp = Qmp(folder.name)
        await asyncio.wait_for(greet(qmp, folder, vmm), 30)
        stack.push_async_callback(qmp.disconnect)
        yield BareVmm(qmp, vmm, folder, spec)


async def greet(qmp: Qmp, folder: Path, vmm: Process) -> None:
    """Connect to QMP, or see the process end."""
    connect = asyncio.create_task(qmp.connect(folder / f"{QMP_SOCKET}.sock"))
    ended = asyncio.create_task(vmm.wait())
    await asyncio.wait({connect, ended}, return_when=asyncio.FIRST_COMPLETED)
    connect.cancel() if ended.done() else ended.cancel()
    assert not ended.done(), vmm.last_words()
    await connect


def bind_sockets(plan: LaunchPlan, folder: Path, stack: AsyncExitStack) -> dict[str, int]:
    """The descriptors that the plan's command line names; ``stack`` closes them."""
    descriptors = {
        CONSOLE_LOG: os.open(folder / "console.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    }
    stack.callback(os.close, descriptors[CONSOLE_LOG])
    for name in plan.sockets:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(folder / f"{name}.sock"))
        listener.listen(4)
        descriptors[name] = listener.fileno()
    return descriptors


def build_bare_argv(plan: LaunchPlan, descriptors: Mapping[str, int], program: Program) -> tuple[str, ...]:
    """The plan's command line with the host's paths for those of the sandbox."""
    argv = list(plan.resolve_argv(descriptors))
    if plan.sandbox is not None:
        given = (*plan.sandbox.read_only, *plan.sandbox.writable, *plan.sandbox.scratch)
        for outside, inside in given:
            if inside != str(outside):
                argv = [argument.replace(inside, str(outside)) for argument in argv]
    return (argv[0], *program.options, *argv[1:])


def create_disk(disk: DiskSpec) -> VirtioDevice:
    """The storage driver's device, as a partition would make it."""
    words = ["--queues", str(disk.queues), "--queue-size", str(disk.queue_size), "--serial", disk.serial]
    image = os.open(disk.path, os.O_RDONLY if disk.read_only else os.O_RDWR)
    return create_device([*words, *(["--read-only"] if disk.read_only else [])], {"image": image})


def serve(device: VirtioDevice, connection: socket.socket, stack: ExitStack) -> None:
    """Serve a device on a VMM's channel until the VMM closes it; ``stack`` waits for that."""
    thread = threading.Thread(target=Backend(connection, device).run)
    thread.start()
    stack.callback(device.close)
    stack.callback(thread.join)
