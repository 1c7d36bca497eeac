"""An unsigned UEFI program of a kilobyte that speaks on the serial port (PE/COFF, Microsoft 8.3)."""

from __future__ import annotations

import struct

# lea rsi, [rip + text]; mov edx, 0x3f8; again: lodsb; test al, al; jz stop; out dx, al; jmp again
# stop: hlt; jmp stop
PROGRAM = bytes.fromhex("488d3510000000 baf8030000 ac 84c0 7403 ee ebf8 f4 ebfd")
HEADERS, CODE_AT = 0x200, 0x1000


def build_efi_program(says: str) -> bytes:
    """The program; it never ends."""
    code = (PROGRAM + says.encode() + b"\r\n\0").ljust(0x200, b"\0")
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x0022)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        0x20B, 0, 0, len(code), 0, 0, CODE_AT, CODE_AT,
        0, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0, 0x2000, HEADERS, 0, 10, 0, 0, 0, 0, 0, 0, 16,
    ) + bytes(128)  # fmt: skip
    section = struct.pack(
        "<8sIIIIIIHHI", b".text", len(code), CODE_AT, len(code), HEADERS, 0, 0, 0, 0, 0x60000020
    )
    return (dos + b"PE\0\0" + coff + optional + section).ljust(HEADERS, b"\0") + code
