"""The machine's ACPI tables: a hardware-reduced platform with a PCI bus, a power button and no legacy device.

Linux takes a hardware-reduced PC for one with EFI and resets it by that; without one it ends, as in the days
of DOS, in real mode at the reset vector (arch/x86/kernel/reboot.c). ``RESET_CODE`` is what it finds there.

Source: ACPI 6.4, 5.2 (tables), 4.1 (hardware-reduced), 4.8.3.7 (sleep registers), 5.6.9 (generic event
device), 4.8.2.2.1.2 (the button). The panic device is QEMU's (docs/specs/pvpanic.rst); Linux has its driver.
"""

from __future__ import annotations

import struct

from duovisor.hypervisor.thin import aml, layout
from duovisor.hypervisor.thin.ports import WINDOW_END, WINDOW_START

OEM = b"DUOVSR"
OEM_TABLE = b"DUOVISOR"
CREATOR = b"DUOV"

SLEEP_TYPE_OFF = 5
RESET_VALUE = 1
SLEEP_CONTROL, SLEEP_STATUS, RESET_REGISTER = 0, 1, 2  # offsets from POWER_PORT
PUSHED = 0x80  # the notification of a button

# mov dx, port; mov al, value; out dx, al; then hlt for ever
RESET_CODE = b"\xba%b\xb0%b\xee\xf4\xeb\xfd" % (
    (layout.POWER_PORT + RESET_REGISTER).to_bytes(2, "little"),
    bytes((RESET_VALUE,)),
)

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_WBINVD, _CONTROL_METHOD_POWER, _CONTROL_METHOD_SLEEP = 1 << 0, 1 << 4, 1 << 5
_RESET_REGISTER_SUPPORTED, _HARDWARE_REDUCED = 1 << 10, 1 << 20
_NO_VGA, _NO_CMOS_CLOCK = 1 << 2, 1 << 5
_FADT_BYTES = 276
_SYSTEM_IO = 1


def build_tables(cpus: int) -> bytes:
    """All tables as they lie from ``layout.ACPI_TABLES`` on, the RSDP first; pure."""
    base = layout.ACPI_TABLES
    rsdp_bytes = 36
    dsdt = build_dsdt()
    fadt_at = base + rsdp_bytes + len(dsdt)
    fadt = build_fadt(base + rsdp_bytes)
    madt = build_madt(cpus)
    madt_at = fadt_at + len(fadt)
    xsdt_at = madt_at + len(madt)
    xsdt = build_table(b"XSDT", 1, struct.pack("<QQ", fadt_at, madt_at))
    return build_rsdp(xsdt_at) + dsdt + fadt + madt + xsdt


def build_table(signature: bytes, revision: int, content: bytes) -> bytes:
    """A system description table: header, content, and the checksum over both (5.2.6)."""
    length = _HEADER.size + len(content)
    table = bytearray(_HEADER.pack(signature, length, revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1) + content)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def build_rsdp(xsdt: int) -> bytes:
    """The pointer to all: 5.2.5.3."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, 0, 36, xsdt, 0))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF
    rsdp[32] = -sum(rsdp) & 0xFF
    return bytes(rsdp)


def build_fadt(dsdt: int) -> bytes:
    """FADT, revision 6.4: hardware-reduced, with a reset register and sleep registers (5.2.9)."""
    table = bytearray(_FADT_BYTES)
    flags = _WBINVD | _CONTROL_METHOD_POWER | _CONTROL_METHOD_SLEEP
    flags |= _RESET_REGISTER_SUPPORTED | _HARDWARE_REDUCED
    struct.pack_into("<H", table, 109, _NO_VGA | _NO_CMOS_CLOCK)
    struct.pack_into("<I", table, 112, flags)
    for place, offset in ((116, RESET_REGISTER), (244, SLEEP_CONTROL), (256, SLEEP_STATUS)):
        struct.pack_into("<BBBBQ", table, place, _SYSTEM_IO, 8, 0, 1, layout.POWER_PORT + offset)
    table[128] = RESET_VALUE
    table[131] = 4
    struct.pack_into("<Q", table, 140, dsdt)
    return build_table(b"FACP", 6, bytes(table[_HEADER.size :]))


def build_madt(cpus: int) -> bytes:
    """Local APICs, the I/O APIC, and the pin of each local APIC that takes an NMI (5.2.12)."""
    content = struct.pack("<II", layout.LOCAL_APIC, 0)
    for index in range(cpus):
        content += struct.pack("<BBBBI", 0, 8, index, index, 1)
    content += struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0)
    content += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    return build_table(b"APIC", 5, content)


def build_dsdt() -> bytes:
    """The devices that cannot be found by looking."""
    devices = aml.build_scope(
        "\\_SB",
        aml.build_device(
            "PCI0",
            aml.build_name("_HID", aml.build_eisa_id("PNP0A03")),
            aml.build_name("_UID", aml.build_integer(0)),
            aml.build_name(
                "_CRS",
                aml.build_resources(
                    aml.build_bus_range(0, 0),
                    aml.build_ports(layout.PCI_PORTS, 8),
                    aml.build_memory_range(WINDOW_START, WINDOW_END),
                ),
            ),
        ),
        aml.build_device("PWRB", aml.build_name("_HID", aml.build_eisa_id("PNP0C0C"))),
        aml.build_device(
            "GED_",
            aml.build_name("_HID", aml.build_string("ACPI0013")),
            aml.build_name("_CRS", aml.build_resources(aml.build_interrupt(layout.POWER_BUTTON_PIN))),
            aml.build_method("_EVT", 1, aml.build_notify("\\_SB.PWRB", PUSHED)),
        ),
        aml.build_device(
            "PANC",
            aml.build_name("_HID", aml.build_string("QEMU0001")),
            aml.build_name("_CRS", aml.build_resources(aml.build_ports(layout.PANIC_PORT, 1))),
            aml.build_name("_STA", aml.build_integer(0xF)),
        ),
    )
    sleep_types = (SLEEP_TYPE_OFF, SLEEP_TYPE_OFF, 0, 0)
    off = aml.build_name("\\_S5_", aml.build_package(*map(aml.build_integer, sleep_types)))
    return build_table(b"DSDT", 2, devices + off)
