"""Event counters on both sides of KVM: interrupts into the guest, notifications out of it.

A message-signalled interrupt: a driver writes to its counter, KVM delivers the routed message, and no exit
happens. A notification: the guest writes to a queue's address, KVM wakes who waits at its counter, and the
processor runs on. Source: Documentation/virt/kvm/api.rst, KVM_IRQFD, KVM_SET_GSI_ROUTING, KVM_IOEVENTFD.
"""

from __future__ import annotations

import threading

from duovisor.hypervisor.thin import kvm_abi as abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.kvm import VirtualMachine

IOAPIC_PINS = 24  # KVM_IOAPIC_NUM_PINS; the global system interrupts of the I/O APIC, ACPI 6.4, 5.2.13
GSI_END = 4096  # KVM_MAX_IRQ_ROUTES


class InterruptRoutes:
    """The table of routes: the I/O APIC's pins, then messages. Any thread."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._messages: dict[int, tuple[int, int]] = {}
        self._next = IOAPIC_PINS
        self._apply()

    def allocate(self) -> int:
        """A GSI that leads nowhere yet. Raises ``ValueError`` without any left."""
        with self._lock:
            if self._next == GSI_END:
                raise ValueError(f"all {GSI_END} interrupt sources are in use")
            self._next += 1
            return self._next - 1

    def attach(self, gsi: int, eventfd: int) -> None:
        """Let ``eventfd`` send the message of a GSI, or pulse the I/O APIC's pin of that number."""
        self._vm.set_irqfd(eventfd, gsi, attached=True)

    def detach(self, gsi: int, eventfd: int) -> None:
        """Undo ``attach``."""
        self._vm.set_irqfd(eventfd, gsi, attached=False)

    def route(self, gsi: int, address: int, data: int) -> None:
        """From now on this is the message of ``gsi``; what a guest wrote, so any number."""
        message = (address & (1 << 64) - 1, data & 0xFFFF_FFFF)
        with self._lock:
            if self._messages.get(gsi) == message:
                return
            self._messages[gsi] = message
            try:
                self._apply()
            except OSError:  # no such message: it leads nowhere
                del self._messages[gsi]
                self._apply()

    def unroute(self, gsi: int) -> None:
        """From now on ``gsi`` leads nowhere."""
        with self._lock:
            if self._messages.pop(gsi, None) is not None:
                self._apply()

    def _apply(self) -> None:
        entries = [_build_pin(pin) for pin in range(IOAPIC_PINS)]
        entries += [_build_message(gsi, *message) for gsi, message in self._messages.items()]
        self._vm.set_routes(entries)


class GuestNotifications:
    """Addresses at which the guest's writes become events."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm

    def attach(self, address: int, eventfd: int) -> None:
        """Count each write to ``address`` in ``eventfd``. Raises ``OSError`` when KVM has no room."""
        self._vm.set_ioeventfd(address, eventfd, attached=True)

    def detach(self, address: int, eventfd: int) -> None:
        """Undo ``attach``."""
        self._vm.set_ioeventfd(address, eventfd, attached=False)


def _build_pin(pin: int) -> abi.RoutingEntry:
    entry = abi.RoutingEntry(pin, abi.ROUTING_IRQCHIP)
    entry.words[0], entry.words[1] = abi.CHIP_IOAPIC, pin
    return entry


def _build_message(gsi: int, address: int, data: int) -> abi.RoutingEntry:
    entry = abi.RoutingEntry(gsi, abi.ROUTING_MSI)
    entry.words[0], entry.words[1], entry.words[2] = address & 0xFFFF_FFFF, address >> 32, data
    return entry
