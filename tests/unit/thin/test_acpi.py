"""ACPI tables: checksums, references, and byte code that says what was meant."""

from __future__ import annotations

import struct

import pytest

from duovisor.hypervisor.thin import acpi, aml, layout


def split_tables(data: bytes) -> dict[bytes, bytes]:
    """The tables behind the RSDP, by signature."""
    found, place = {}, 36
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        found[data[place : place + 4]] = data[place : place + length]
        place += length
    return found


@pytest.mark.parametrize("cpus", [1, 16])
def test_every_checksum_is_right(cpus: int) -> None:
    data = acpi.build_tables(cpus)
    assert sum(data[:20]) % 256 == sum(data[:36]) % 256 == 0
    tables = split_tables(data)
    assert [sum(table) % 256 for table in tables.values()] == [0] * 4
    assert len(data) < layout.RESET_VECTOR - layout.ACPI_TABLES


def test_every_reference_leads_to_its_table() -> None:
    data = acpi.build_tables(4)

    def signature_at(address: int) -> bytes:
        return data[address - layout.ACPI_TABLES :][:4]

    (xsdt,) = struct.unpack_from("<Q", data, 24)
    assert signature_at(xsdt) == b"XSDT"
    entries = struct.unpack_from("<QQ", split_tables(data)[b"XSDT"], 36)
    assert [signature_at(entry) for entry in entries] == [b"FACP", b"APIC"]
    (dsdt,) = struct.unpack_from("<Q", split_tables(data)[b"FACP"], 140)
    assert signature_at(dsdt) == b"DSDT"


def test_each_processor_has_its_apic() -> None:
    madt = split_tables(acpi.build_tables(3))[b"APIC"]
    assert [madt[44 + 8 * index : 52 + 8 * index] for index in range(3)] == [
        bytes((0, 8, index, index, 1, 0, 0, 0)) for index in range(3)
    ]


def test_reset_and_sleep_registers_are_where_the_machine_has_them() -> None:
    fadt = split_tables(acpi.build_tables(1))[b"FACP"]
    addresses = [struct.unpack_from("<BBBBQ", fadt, place) for place in (116, 244, 256)]
    assert addresses == [(1, 8, 0, 1, 0x602), (1, 8, 0, 1, 0x600), (1, 8, 0, 1, 0x601)]
    assert fadt[128] == 1
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags >> 20 & 1  # hardware-reduced
    assert flags >> 10 & 1  # there is a reset register


def test_reset_code_writes_the_reset_register() -> None:
    # mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp -3
    assert bytes.fromhex("ba0206 b001 ee f4 ebfd") == acpi.RESET_CODE


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (aml.build_integer(0), "00"),
        (aml.build_integer(1), "01"),
        (aml.build_integer(5), "0a05"),
        (aml.build_integer(0x1234), "0b3412"),
        (aml.build_integer(0xC0000000), "0c000000c0"),
        (aml.build_integer(1 << 32), "0e0000000001000000"),
        (aml.build_eisa_id("PNP0A03"), "0c41d00a03"),
        (aml.build_name("_UID", aml.build_integer(0)), "085f55494400"),
        (aml.build_name("\\_S5", aml.build_package(b"\0", b"\0")), "085c5f53355f 12 04 02 0000"),
        (aml.build_notify("\\_SB.PWRB", 0x80), "865c2e5f53425f505752420a80"),
        (aml.build_ports(0xCF8, 8), "4701f80cf80c0108"),
        (aml.build_resources(), "11050a027900"),
        (aml.build_interrupt(5), "890600030105000000"),
    ],
)
def test_terms_are_encoded_as_the_specification_says(built: bytes, expected: str) -> None:
    assert built == bytes.fromhex(expected)


@pytest.mark.parametrize("size", [0, 61, 62, 63, 64, 4090, 4093, 4094, 70_000])
def test_the_length_of_a_package_counts_itself(size: int) -> None:
    scope = aml.build_scope("ABCD", bytes(size))
    lead = scope[1]
    extra = lead >> 6
    length = lead & 0x3F
    if extra:
        length = lead & 0xF | int.from_bytes(scope[2 : 2 + extra], "little") << 4
    assert length == len(scope) - 1
