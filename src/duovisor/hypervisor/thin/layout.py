"""Where things are: the guest's physical addresses and I/O ports. ``docs/thin-vmm.md`` draws the map."""

from __future__ import annotations

# below 1 MiB, all but the tables free for the guest once it has read them
GDT = 0x500
START_INFO = 0x6000  # PVH
ZERO_PAGE = 0x7000
BOOT_STACK = 0x8FF0
PAGE_TABLES = 0x9000
COMMAND_LINE = 0x20000
COMMAND_LINE_BYTES = 2048  # COMMAND_LINE_SIZE of x86 Linux, with the zero at its end
LOW_MEMORY_END = 0x9FC00  # a PC's firmware keeps the rest
ACPI_TABLES = 0xE0000  # where a guest that was not told looks for the RSDP: ACPI 6.4, 5.2.5.1
RESET_VECTOR = 0xFFFF0  # where a PC begins; Linux jumps there when it knows no better way to reset
KERNEL = 0x100000

IOAPIC = 0xFEC0_0000
LOCAL_APIC = 0xFEE0_0000
KVM_PAGES = 0xFFFB_C000  # four pages for KVM itself

# I/O ports
DEBUG_PORT = 0x3F8  # where Linux's earlyprintk=serial writes
DEBUG_PORTS = 8
PANIC_PORT = 0x505  # docs/specs/pvpanic.rst of QEMU
POWER_PORT = 0x600
POWER_PORTS = 3
PCI_PORTS = 0xCF8

POWER_BUTTON_PIN = 5  # of the I/O APIC
