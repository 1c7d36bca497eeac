"""The part of a start that changes nothing on the host: checks, decisions and locks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.firmware_files import find_firmware, make_variables
from duovisor.controlling.machine_drivers import open_device
from duovisor.controlling.machine_networks import check_networks
from duovisor.controlling.media.server import FOLDER, check_media
from duovisor.controlling.preflight import (
    check_boot_files,
    check_kvm_device,
    check_memory,
    choose_accelerator,
    find_kvm_gids,
    find_libraries,
    find_sandbox_tools,
)
from duovisor.controlling.python_runtime import PACKAGE, find_standard_library, interpreter
from duovisor.controlling.resources.processors import check_group_limits
from duovisor.controlling.tpm import find_tpm_environment
from duovisor.controlling.vmm_choice import choose_vmm
from duovisor.hypervisor.build import build_launch_plan
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.thin_plan import DeviceShape, ThinPaths, build_thin
from duovisor.hypervisor.vmm import CHANNELS
from duovisor.sandbox import uid_of
from duovisor.spec.vm import Design, VmmKind

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.disk_files import OpenDisk
    from duovisor.controlling.machine_drivers import OpenDevice
    from duovisor.controlling.machine_place import Place
    from duovisor.controlling.tpm import TpmEnvironment
    from duovisor.controlling.vmm_choice import VmmDecision
    from duovisor.hardware.accelerator import AcceleratorDecision
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.hypervisor.qemu.images import ImageFile
    from duovisor.sandbox import SandboxTools
    from duovisor.spec.vm import VirtualMachineSpec


class CheckedStart(NamedTuple):
    """A start that nothing known speaks against.

    ``disks`` and ``devices`` are what driver partitions get; ``open_disks`` closes both, and unlocks disks.
    ``modules_mib`` is memory that came to the guest since it booted.
    """

    spec: VirtualMachineSpec
    capabilities: HostCapabilities
    decision: AcceleratorDecision
    vmm: VmmDecision
    tools: SandboxTools
    disks: tuple[OpenDisk, ...]
    open_disks: ExitStack
    block_devices: frozenset[str]
    chains: tuple[tuple[ImageFile, ...], ...]
    devices: tuple[OpenDevice, ...]
    tpm: TpmEnvironment | None = None
    modules_mib: tuple[int, ...] = ()

    def build_plan(
        self, run_dir: Path, place: Place, *, restored: bool = False, on_demand: bool = False
    ) -> LaunchPlan:
        """The launch plan of a VMM with the folder ``run_dir``.

        ``restored``: it inherits a saved state, which the thin VMM alone can; ``on_demand``: it has a pager,
        too. For UEFI, its variables are made if it has none. Raises ``HostLacksError`` or ``BootFileError``.
        """
        if self.vmm.kind is VmmKind.THIN:
            return self._build_thin_plan(place, restored=restored, on_demand=on_demand)
        qemu_path, qemu = self.capabilities.require_qemu()
        firmware = find_firmware(self.spec)
        sandboxed = self.spec.design is Design.MICROKERNELIZED
        owner = uid_of(self.spec.name) if self.tools.as_root and sandboxed else None
        booted_mib = self.spec.memory_mib - sum(self.modules_mib)
        variables = make_variables(self.spec, firmware, place.kept, owner) if firmware else None
        paths = VmmPaths(
            qemu=qemu_path,
            memory_file=place.memory_file,
            uefi_code=firmware.code if firmware else None,
            uefi_vars=variables,
            block_devices=self.block_devices,
            chains=self.chains,
            device_types=tuple(device.device_type for device in self.devices),
            libraries=find_libraries(),
            channels=run_dir / CHANNELS,
            media=run_dir / FOLDER,
            module_files=place.module_files if self.spec.memory_room_mib > booted_mib else (),
            modules_mib=self.modules_mib,
        )
        gids = find_kvm_gids(self.capabilities)
        return build_launch_plan(self.spec, qemu, self.decision.accelerator, paths, gids)

    def _build_thin_plan(self, place: Place, *, restored: bool, on_demand: bool) -> LaunchPlan:
        paths = ThinPaths(
            interpreter=interpreter(),
            runtime=find_standard_library(),
            package=PACKAGE,
            memory_file=place.memory_file,
            libraries=find_libraries(),
            devices=tuple(DeviceShape(device.device_type) for device in self.devices),
        )
        accelerator = self.decision.accelerator
        return build_thin(self.spec, accelerator, paths, restored=restored, on_demand=on_demand)


def check_start(spec: VirtualMachineSpec, capabilities: HostCapabilities) -> CheckedStart:
    """Make every check that can be made before anything is on the host. Raises ``DuovisorError``."""
    decision = choose_accelerator(spec, capabilities)
    vmm = choose_vmm(spec, decision.accelerator)
    if vmm.kind is VmmKind.QEMU:
        capabilities.require_qemu()
        check_kvm_device(spec, capabilities, decision.accelerator)
    check_memory(spec, capabilities.memory_total_mib)
    check_boot_files(spec)
    find_firmware(spec)
    check_networks(spec)
    check_group_limits(spec, capabilities)
    check_media(spec, capabilities)
    tpm = find_tpm_environment(spec, capabilities)
    tools = find_sandbox_tools(spec.design, capabilities)
    kept = spec.design is Design.MICROKERNELIZED  # else QEMU opens and locks them itself
    with ExitStack() as stack:
        disks = tuple(stack.enter_context(open_disk(disk)) for disk in spec.disks)
        devices = tuple(open_device(device, stack) for device in spec.devices) if kept else ()
        open_disks = stack.pop_all() if kept else ExitStack()
    pairs = zip(spec.disks, disks, strict=True)
    block_devices = frozenset(disk.path for disk, opened in pairs if opened.is_block_device)
    chains = tuple(opened.chain for opened in disks)
    kept_disks = disks if kept else ()
    return CheckedStart(
        spec, capabilities, decision, vmm, tools, kept_disks, open_disks, block_devices, chains, devices, tpm
    )
