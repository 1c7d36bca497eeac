"""A virtual machine as a whole: one VMM, and in the microkernelized design its driver partitions.

``start_machine`` is the one way to run a VM in either design. Everything it makes on the host is taken away
again when it is left, in reverse order, whatever happened in between.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.console import Console
from duovisor.controlling.description import write_description
from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.controlling.network_helper import start_network_helper
from duovisor.controlling.partition import PartitionEnvironment, start_storage_partition
from duovisor.controlling.preflight import (
    check_boot_files,
    check_memory,
    choose_accelerator,
    copy_uefi_variables,
    find_kvm_gids,
    find_ovmf,
    find_sandbox_tools,
)
from duovisor.controlling.python_runtime import find_python_files
from duovisor.controlling.run_folder import open_run_folder
from duovisor.hypervisor.build import build_launch_plan
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.qemu.console import CONSOLE_SOCKET, port_socket
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.hypervisor.qemu.nics import nic_socket
from duovisor.hypervisor.vmm import Vmm
from duovisor.sandbox import uid_of
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from duovisor.controlling.disk_files import OpenDisk
    from duovisor.directories import Directories
    from duovisor.hardware.accelerator import AcceleratorDecision
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.process import Process
    from duovisor.sandbox import SandboxTools
    from duovisor.spec.vm import VirtualMachineSpec

SHUTDOWN_GRACE_S = 20.0


class Machine:
    """A running virtual machine: its VMM, the processes beside it, and its console."""

    def __init__(
        self, spec: VirtualMachineSpec, decision: AcceleratorDecision, vmm: Vmm, run_dir: Path
    ) -> None:
        self.spec = spec
        self.decision = decision
        self.vmm = vmm
        self.run_dir = run_dir
        self.partitions: dict[str, Process] = {}
        self.console: Console

    def port_path(self, port: str) -> Path:
        """The Unix socket of the virtio-serial port with this name. Raises ``ValueError``."""
        return self.vmm.socket_path(port_socket(self.spec.ports.index(port)))

    async def shut_down(self, *, grace_s: float = SHUTDOWN_GRACE_S) -> bool:
        """Press the power button and wait; returns whether the guest shut down within ``grace_s`` seconds."""
        await self.vmm.press_power_button()
        try:
            await self.vmm.wait_ended(timeout_s=grace_s)
        except TimeoutError:
            return False
        return True

    async def wait_partition_lost(self) -> PartitionError:
        """Wait until a partition ends while it should serve, and return what to say about it."""
        waits = {asyncio.create_task(p.wait(), name=name): name for name, p in self.partitions.items()}
        try:
            if not waits:
                await asyncio.Future()  # nothing can be lost
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            name = waits[done.pop()]
            lost = self.partitions[name]
            return PartitionError(f"{self.spec.name}: {lost.role} of {name}: {lost.failure().message}")
        finally:
            for task in waits:
                task.cancel()


@asynccontextmanager
async def start_machine(
    spec: VirtualMachineSpec,
    capabilities: HostCapabilities,
    directories: Directories,
    *,
    die_with_owner: bool = True,
) -> AsyncIterator[Machine]:
    """Start a VM in the design of its specification; on leaving, end it and remove all it left.

    ``die_with_owner``: the kernel ends the VM's processes when this one is killed.
    Raises ``DuovisorError``: every check that can be made is made before the first process starts.
    """
    qemu_path, qemu = capabilities.require_qemu()
    decision = choose_accelerator(spec, capabilities)
    check_memory(spec, capabilities.memory_total_mib)
    check_boot_files(spec)
    tools = find_sandbox_tools(spec.design, capabilities)
    async with AsyncExitStack() as stack:
        with ExitStack() as disk_stack:
            disks = [disk_stack.enter_context(open_disk(disk)) for disk in spec.disks]
            block_devices = {disk.path for disk, opened in zip(spec.disks, disks, strict=True) if opened[2]}
            if spec.design is Design.MICROKERNELIZED:
                stack.push(disk_stack.pop_all())  # else QEMU opens and locks them itself
        run_dir = stack.enter_context(open_run_folder(directories.vms, spec.name))
        memory_file = stack.enter_context(open_memory_folder(directories.runtime)) / spec.name
        memory_file.unlink(missing_ok=True)  # left by a killed owner: the name is ours now
        uefi_code, uefi_template = find_ovmf()
        owner = uid_of(spec.name) if tools.as_root and spec.design is Design.MICROKERNELIZED else None
        paths = VmmPaths(
            qemu=qemu_path,
            memory_file=memory_file,
            uefi_code=uefi_code,
            uefi_vars=copy_uefi_variables(spec, uefi_template, run_dir / "uefi-vars.fd", owner),
            block_devices=frozenset(block_devices),
        )
        plan = build_launch_plan(spec, qemu, decision.accelerator, paths, find_kvm_gids(capabilities))
        machine = Machine(spec, decision, Vmm(plan, run_dir, tools), run_dir)
        stack.push_async_callback(_stop_partitions, machine)
        stack.push_async_callback(machine.vmm.clean_up)
        machine.vmm.prepare()
        if spec.design is Design.MICROKERNELIZED:
            _start_partitions(machine, disks, capabilities, tools, directories.cache)
        machine.vmm.launch(die_with_owner=die_with_owner)
        await _run(machine)
        machine.console = await Console.connect(
            machine.vmm.socket_path(CONSOLE_SOCKET), run_dir / "console.log"
        )
        stack.push_async_callback(machine.console.close)
        write_description(machine)
        yield machine


def _start_partitions(
    machine: Machine,
    disks: Sequence[OpenDisk],
    capabilities: HostCapabilities,
    tools: SandboxTools,
    cache_dir: Path,
) -> None:
    environment = PartitionEnvironment(
        vm_name=machine.spec.name,
        run_dir=machine.run_dir,
        tools=tools,
        python_files=find_python_files(cache_dir, (tools.setpriv,) if tools.as_root else ()),
    )
    for index, (disk, opened) in enumerate(zip(machine.spec.disks, disks, strict=True)):
        name = disk_socket(index)
        machine.partitions[name] = start_storage_partition(environment, name, disk, opened)
    for index, nic in enumerate(machine.spec.nics):
        name = nic_socket(index)
        machine.partitions[name] = start_network_helper(capabilities.tools.passt, machine.run_dir, name, nic)


async def _run(machine: Machine) -> None:
    """Start the processors; a partition that dies meanwhile would leave the VMM waiting for it for ever."""
    run = asyncio.create_task(machine.vmm.run())
    lost = asyncio.create_task(machine.wait_partition_lost())
    try:
        await asyncio.wait({run, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise lost.result()
        await run
    finally:
        for task in (run, lost):
            task.cancel()
        await asyncio.gather(run, lost, return_exceptions=True)


async def _stop_partitions(machine: Machine) -> None:
    """End the partitions: with the VMM gone their channel is closed and most have ended by themselves."""
    for partition in machine.partitions.values():
        await partition.stop(grace_s=1.0)
