"""ISO images that a BIOS starts from, with a program of 22 bytes that says something on the serial port."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pycdlib import PyCdlib

if TYPE_CHECKING:
    from pathlib import Path

# call next; next: pop si; add si, 19; mov dx, 0x3f8
# again: cs lodsb; test al, al; jz stop; out dx, al; jmp again; stop: hlt; jmp stop
PROGRAM = bytes.fromhex("e80000 5e 83c613 baf803 2eac 84c0 7403 ee ebf7 f4 ebfd")
SECTOR = 2048


def write_boot_iso(path: Path, says: str) -> Path:
    """An image whose program prints a line and stops (El Torito, no emulation)."""
    program = (PROGRAM + says.encode() + b"\r\n\0").ljust(SECTOR, b"\0")
    image = PyCdlib()
    image.new()
    image.add_fp(io.BytesIO(program), len(program), "/BOOT.;1")
    image.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=SECTOR // 512)
    image.write(str(path))
    image.close()
    return path
