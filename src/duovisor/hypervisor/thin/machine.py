"""The machine: what KVM gives, what we add, and its life from the first instruction to the last.

Everything here runs in the main thread. ``emit`` is told of each step of its life, in QMP's words.
"""

from __future__ import annotations

import os
import time

from duovisor.channel.on_demand import OnDemand
from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.thin import acpi, boot, layout, processors
from duovisor.hypervisor.thin.bus import Bus
from duovisor.hypervisor.thin.config import DEBUG, INITRD, KERNEL, KVM, MEMORY, PAGER, USERFAULT
from duovisor.hypervisor.thin.cpu_model import DENIED_MSRS, build_cpuid
from duovisor.hypervisor.thin.devices import build_devices
from duovisor.hypervisor.thin.entry_state import write_defaults, write_entry
from duovisor.hypervisor.thin.errors import KvmError
from duovisor.hypervisor.thin.interrupts import GuestNotifications, InterruptRoutes
from duovisor.hypervisor.thin.kvm import Kvm
from duovisor.hypervisor.thin.kvm_vcpu import Vcpu
from duovisor.hypervisor.thin.log import tell
from duovisor.hypervisor.thin.memory import Memory
from duovisor.hypervisor.thin.ports import Platform
from duovisor.hypervisor.thin.power import DebugPort, PanicPort, PowerButton, PowerPorts
from duovisor.hypervisor.thin.processors import Processors
from duovisor.hypervisor.thin.state import restore_hardware, restore_machine, save_hardware, save_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from duovisor.channel.event_loop import EventLoop
    from duovisor.hypervisor.thin.config import Config
    from duovisor.hypervisor.thin.kvm import VirtualMachine
    from duovisor.hypervisor.thin.ports import Device

    Emit = Callable[[str, dict[str, Any]], None]

DRIVER_TIMEOUT_S = 25.0  # its owner gives it 30 s from start to greeting
CHIPS = 3

# QEMU's names of run states (qapi/run-state.json)
PRELAUNCH, INCOMING, RUNNING, PAUSED = "prelaunch", "inmigrate", "running", "paused"
SHUT_DOWN, PANICKED, FAILED = "shutdown", "guest-panicked", "internal-error"


class Machine:
    """A virtual machine, stopped before its first instruction until ``cont``. Raises ``DuovisorError``."""

    def __init__(self, config: Config, loop: EventLoop, emit: Emit, vm: VirtualMachine | None = None) -> None:
        self.status = INCOMING if config.is_incoming else PRELAUNCH
        self._emit = emit
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._clock_ns: int | None = None
        try:
            self._build(config, loop, vm or create_vm(config.descriptors[KVM]))
        except OSError as error:
            raise KvmError(f"KVM refuses the machine: {error.strerror}") from error
        loop.watch(self._wake, self._on_happening)

    def _build(self, config: Config, loop: EventLoop, vm: VirtualMachine) -> None:
        self.config = config
        given = config.descriptors
        self.vm = vm
        self.memory = Memory(given[MEMORY], config.memory_mib << 20)
        if PAGER in given:
            self._on_demand = OnDemand(given[USERFAULT], given[PAGER])
            self._on_demand.register(self.memory.view, 0)
        self.memory.attach(self.vm)
        self._files = boot.BootFiles(given[KERNEL], given.get(INITRD), config.command_line)
        self.memory_space, self.io_space = Bus(), Bus()
        self.interrupts = InterruptRoutes(self.vm)
        self.vcpus = self._create_vcpus(config)
        self.processors = Processors(self.vcpus, self.memory_space, self.io_space, self._wake_up)
        self._add_registers(config)
        platform = Platform(
            self.memory_space,
            self.io_space,
            self.interrupts,
            GuestNotifications(self.vm),
            self.memory.shared,
            loop,
            tell,
        )
        self.devices: list[Device] = build_devices(config.devices, platform)
        self._pristine = save_hardware(self)

    def _create_vcpus(self, config: Config) -> list[Vcpu]:
        offered = self.vm.kvm.read_cpuid()
        vcpus = []
        for index in range(config.cpus):
            vcpu = Vcpu(self.vm, index)
            vcpu.set_cpuid(build_cpuid(offered, config.cpu_model, config.cpus, index))
            write_defaults(vcpu)
            vcpus.append(vcpu)
        return vcpus

    def _add_registers(self, config: Config) -> None:
        happen = self.processors.happen
        power = PowerPorts(lambda: happen(processors.RESET), lambda: happen(processors.SHUTDOWN))
        self.io_space.add(layout.POWER_PORT, layout.POWER_PORTS, power)
        self.io_space.add(layout.PANIC_PORT, 1, PanicPort(lambda: happen(processors.PANIC)))
        if (debug := config.descriptors.get(DEBUG)) is not None:
            self.io_space.add(layout.DEBUG_PORT, layout.DEBUG_PORTS, DebugPort(debug))
        self._button = PowerButton(self.interrupts)

    def wait_drivers(self) -> None:
        """Wait until each device's driver has connected. Raises ``DuovisorError``."""
        deadline = time.monotonic() + DRIVER_TIMEOUT_S
        for device in self.devices:
            device.wait_driver(max(deadline - time.monotonic(), 0.1))

    def load_kernel(self) -> None:
        """Make the first processor begin at the kernel's entry. Raises ``BootImageError``."""
        entry = boot.load(self.memory, self._files)
        tables = acpi.build_tables(self.config.cpus)
        low = self.memory.low
        low[layout.ACPI_TABLES : layout.ACPI_TABLES + len(tables)] = tables
        low[layout.RESET_VECTOR : layout.RESET_VECTOR + len(acpi.RESET_CODE)] = acpi.RESET_CODE
        write_entry(self.vcpus[0], low, entry)

    @property
    def is_incoming(self) -> bool:
        """Whether it has nothing to run yet, until ``restore``; the memory may still be another VMM's."""
        return self.status == INCOMING

    # Life cycle

    def cont(self) -> None:
        """Let the processors run. Raises ``HypervisorError`` when the guest cannot go on."""
        if self.status == RUNNING:
            return
        if self.status not in (PRELAUNCH, PAUSED):
            raise HypervisorError(f"the guest cannot go on: it is in {self.status}", remedy="reset it")
        self._resume()
        self.status = RUNNING
        self._emit("RESUME", {})

    def stop(self) -> None:
        """Stop the processors and the devices."""
        if self.status == RUNNING:
            self._halt(PAUSED)

    def reset(self, *, guest: bool, reason: str) -> None:
        """Boot again; a stopped guest stays stopped. Raises ``HypervisorError`` while there is none."""
        if self.is_incoming:
            raise HypervisorError("the guest is still another VMM's")
        was_running = self.status == RUNNING
        if was_running:
            self._pause()
        self.processors.forget_happenings()
        for device in self.devices:
            device.reset()
        restore_hardware(self, self._pristine, with_tsc=False)
        self.load_kernel()
        self._emit("RESET", {"guest": guest, "reason": reason})
        if was_running:
            self._resume()
        else:
            self.status = PRELAUNCH

    def save(self) -> bytes:
        """The state of a stopped machine, without its memory. Raises ``HypervisorError`` when it is not."""
        if self.status not in (PRELAUNCH, PAUSED):
            raise HypervisorError(f"only a stopped machine can be saved: it is {self.status}")
        return save_machine(self, self.vm.read_clock_ns() if self._clock_ns is None else self._clock_ns)

    def restore(self, state: bytes) -> None:
        """Take on a saved state, stopped; the memory is already what it was. Raises ``ThinConfigError``."""
        self._clock_ns = restore_machine(self, state)
        self.status = PAUSED

    def press_power_button(self) -> None:
        """What follows is the guest's choice."""
        self._button.press()
        self._emit("POWERDOWN", {})

    def end(self, *, guest: bool, reason: str) -> None:
        """The machine's last step; the process ends after it."""
        if self.status == RUNNING:
            self._pause()
        self.status = SHUT_DOWN
        self._emit("SHUTDOWN", {"guest": guest, "reason": reason})

    def count_exits(self) -> dict[str, int]:
        """Exits that reached this process by kind, and those of them that nobody claimed."""
        unclaimed = self.memory_space.unclaimed + self.io_space.unclaimed
        return {**self.processors.count_exits(), "unclaimed": unclaimed}

    def _resume(self) -> None:
        for device in self.devices:
            device.resume()
        if self._clock_ns is not None:
            self.vm.set_clock_ns(self._clock_ns)
            for vcpu in self.vcpus:
                vcpu.tell_paused()
        self.processors.resume()

    def _pause(self) -> None:
        self.processors.pause()
        self._clock_ns = self.vm.read_clock_ns()
        for device in self.devices:
            device.pause()

    def _halt(self, status: str) -> None:
        self._pause()
        self.status = status
        self._emit("STOP", {})

    # What the guest does

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _on_happening(self) -> None:
        os.eventfd_read(self._wake)
        while (happening := self.processors.take_happening()) is not None:
            if self.status != SHUT_DOWN:
                self._settle(*happening)

    def _settle(self, what: str, detail: str) -> None:
        match what:
            case processors.RESET:
                self.reset(guest=True, reason="guest-reset")
            case processors.SHUTDOWN:
                self.end(guest=True, reason="guest-shutdown")
            case processors.PANIC:
                self._emit("GUEST_PANICKED", {"action": "pause"})
                self._halt(PANICKED)
            case _:
                tell(self.config.name, detail)
                self._halt(FAILED)


def create_vm(kvm: int) -> VirtualMachine:
    """What all machines have in common, of ``/dev/kvm``'s descriptor. Raises ``KvmError``.

    It may wait here for its machine: the filter alone takes KVM some 20 ms, in which it waits for itself.
    """
    try:
        vm = Kvm(kvm).create_vm()
        vm.set_internal_pages(layout.KVM_PAGES)
        vm.create_irqchip()
        vm.set_msr_filter(DENIED_MSRS)
    except OSError as error:
        raise KvmError(f"KVM refuses the machine: {error.strerror}") from error
    return vm
