"""A guest of some bytes for both VMMs: entered in 64-bit mode by ours, and in real mode by QEMU's firmware.

It counts time stamps and says the next of sixteen letters at each 4,194,304th: some hundred a second on
whatever processor, none left out and none said twice.
"""

from __future__ import annotations

import struct

DEBUG_PORT, SECTOR = 0x3F8, 512
SETUP_CODE = 0x26C  # behind the setup header, where the jump at 0x200 leads to
TICK_BITS = 22
# of the thin VMM, and of q35's power management where SeaBIOS puts it
THIN_POWER_PORT, THIN_OFF = 0x600, 0x34
Q35_POWER_PORT, Q35_OFF = 0x604, 0x2000


def count_for_ever(*, real_mode: bool) -> bytes:
    """ebx counts, esi is the last time stamp; the prefix makes operands of 32 bits out of 16."""
    wide, narrow = (b"\x66", b"") if real_mode else (b"", b"\x66")
    begin = wide + b"\x31\xdb" + wide + b"\x31\xf6"  # xor ebx, ebx; xor esi, esi
    wait = (
        b"\x0f\x31" + wide + bytes((0xC1, 0xE8, TICK_BITS)) + wide + b"\x39\xf0"
    )  # rdtsc; shr; cmp eax, esi
    wait += bytes((0x74, 0x100 - len(wait) - 2))  # je to the rdtsc
    say = wide + b"\x89\xc6" + wide + b"\xff\xc3"  # mov esi, eax; inc ebx
    say += b"\x88\xd8\x24\x0f\x04\x61"  # mov al, bl; and al, 15; add al, 'a'
    say += narrow + b"\xba" + struct.pack("<H", DEBUG_PORT) + b"\xee"  # mov dx, …; out dx, al
    loop = wait + say
    return begin + loop + bytes((0xEB, 0x100 - len(loop) - 2))


def switch_off(*, real_mode: bool) -> bytes:
    """Say o, and leave."""
    say = b"\xb0o" + (b"" if real_mode else b"\x66") + b"\xba" + struct.pack("<H", DEBUG_PORT) + b"\xee"
    if real_mode:  # mov dx, …; mov ax, …; out dx, ax; cli; hlt
        return say + struct.pack("<BHBHB", 0xBA, Q35_POWER_PORT, 0xB8, Q35_OFF, 0xEF) + b"\xfa\xf4\xeb\xfd"
    return (
        say + b"\x66\xba" + struct.pack("<HBBB", THIN_POWER_PORT, 0xB0, THIN_OFF, 0xEE) + b"\xfa\xf4\xeb\xfd"
    )


def build_two_way_image(real_mode: bytes, long_mode: bytes) -> bytes:
    """A bzImage by the boot protocol 2.15 with both entries (Documentation/arch/x86/boot.rst)."""
    setup = bytearray(2 * SECTOR)
    setup[0x1F1] = 1  # setup sectors beside the first
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"  # the jump over the header
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    setup[0x211] = 1  # the rest is loaded at 1 MiB
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    setup[0x234] = 1  # relocatable
    struct.pack_into("<H", setup, 0x236, 1)  # XLF_KERNEL_64
    struct.pack_into("<QI", setup, 0x258, 0x100000, 0x10000)  # preferred address, room
    setup[SETUP_CODE : SETUP_CODE + len(real_mode)] = real_mode
    return bytes(setup) + bytes(SECTOR) + long_mode
