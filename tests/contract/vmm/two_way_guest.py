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
Q35_STATUS, Q35_ENABLE = 0x600, 0x602  # ACPI 6.4, 4.8.3.1: the button is bit 8 of both
# of the thin VMM: hypervisor/thin/layout.py; the page behind its page tables is nobody's
SECOND_TABLE, DIRECTORY = 0xA000, 0xC000
IO_APIC, LOCAL_APIC, BUTTON_PIN, VECTOR = 0xFEC0_0000, 0xFEE0_0000, 5, 0x40
PRESENT_UNCACHED_LARGE = 0x93
# docs/specs/acpi_pci_hotplug.rst of QEMU, where q35 has it
Q35_LEAVING, Q35_EJECT, Q35_BUS, BUSES = 0xCC4, 0xCC8, 0xCD0, 4


def count_for_ever(*, real_mode: bool, letting_go: bool = False) -> bytes:
    """ebx counts, esi is the last time stamp; the prefix makes operands of 32 bits out of 16.

    ``letting_go``: at each letter, of every device that it is to let go of.
    """
    wide, narrow = (b"\x66", b"") if real_mode else (b"", b"\x66")
    begin = wide + b"\x31\xdb" + wide + b"\x31\xf6"  # xor ebx, ebx; xor esi, esi
    wait = (
        b"\x0f\x31" + wide + bytes((0xC1, 0xE8, TICK_BITS)) + wide + b"\x39\xf0"
    )  # rdtsc; shr; cmp eax, esi
    wait += bytes((0x74, 0x100 - len(wait) - 2))  # je to the rdtsc
    say = wide + b"\x89\xc6" + wide + b"\xff\xc3"  # mov esi, eax; inc ebx
    say += b"\x88\xd8\x24\x0f\x04\x61"  # mov al, bl; and al, 15; add al, 'a'
    say += narrow + b"\xba" + struct.pack("<H", DEBUG_PORT) + b"\xee"  # mov dx, …; out dx, al
    loop = wait + say + (_let_go() if letting_go and real_mode else b"")
    return begin + loop + bytes((0xEB, 0x100 - len(loop) - 2))


def _let_go() -> bytes:
    """For each bus: select it; eject the slots that are to be."""
    again = struct.pack("<BH", 0xBA, Q35_BUS) + b"\x66\x89\xc8\x66\xef"  # mov dx, …; mov eax, ecx; out
    again += struct.pack("<BH", 0xBA, Q35_LEAVING) + b"\x66\xed\x66\x85\xc0"  # mov dx, …; in; test eax, eax
    again += b"\x74\x05" + struct.pack("<BH", 0xBA, Q35_EJECT) + b"\x66\xef"  # jz over; mov dx, …; out
    again += b"\x49"  # dec cx
    begin = b"\x66\xb9" + struct.pack("<I", BUSES - 1)  # mov ecx, …
    return begin + again + bytes((0x79, 0x100 - len(again) - 2))  # jns to the selecting


def switch_off(*, real_mode: bool) -> bytes:
    """Say o, and leave."""
    say = b"\xb0o" + (b"" if real_mode else b"\x66") + b"\xba" + struct.pack("<H", DEBUG_PORT) + b"\xee"
    if real_mode:  # mov dx, …; mov ax, …; out dx, ax; cli; hlt
        return say + struct.pack("<BHBHB", 0xBA, Q35_POWER_PORT, 0xB8, Q35_OFF, 0xEF) + b"\xfa\xf4\xeb\xfd"
    return (
        say + b"\x66\xba" + struct.pack("<HBBB", THIN_POWER_PORT, 0xB0, THIN_OFF, 0xEE) + b"\xfa\xf4\xeb\xfd"
    )


def obey_button(*, real_mode: bool) -> bytes:
    """Say r once the power button works; when it is pressed, switch off.

    Without interrupts: on q35 the button's bit is polled, on the thin VMM the local APIC's requests.
    """
    if real_mode:  # cli; mov dx, …; mov ax, 1 << 8; out dx, ax
        begin = b"\xfa" + struct.pack("<BHBHB", 0xBA, Q35_ENABLE, 0xB8, 1 << 8, 0xEF)
        begin += b"\xb0r" + struct.pack("<BHB", 0xBA, DEBUG_PORT, 0xEE)
        # mov dx, …; in ax, dx; test ah, 1; jz to the in
        wait = struct.pack("<BH", 0xBA, Q35_STATUS) + b"\xed\xf6\xc4\x01\x74\xfa"
    else:
        begin = b"\xfa" + _map_interrupt_controllers()
        begin += b"\xbb" + struct.pack("<I", LOCAL_APIC)  # mov ebx, …
        begin += b"\xc7\x83" + struct.pack("<II", 0xF0, 0x1FF)  # spurious vector and on: [rbx + 0xf0]
        begin += b"\xb9" + struct.pack("<I", IO_APIC)  # mov ecx, …
        for index, value in ((0x11 + 2 * BUTTON_PIN, 0), (0x10 + 2 * BUTTON_PIN, VECTOR)):
            begin += b"\xc7\x01" + struct.pack("<I", index) + b"\xc7\x41\x10" + struct.pack("<I", value)
        begin += b"\x66\xba" + struct.pack("<H", DEBUG_PORT) + b"\xb0r\xee"
        # test byte [rbx + …], 1 << VECTOR % 32; jz to it
        wait = b"\xf6\x83" + struct.pack("<IB", 0x200 + VECTOR // 32 * 0x10, 1) + b"\x74\xf7"
    return begin + wait + switch_off(real_mode=real_mode)


def _map_interrupt_controllers() -> bytes:
    """Map both APICs onto themselves: two large pages in a directory for the fourth GiB."""
    entries = [
        (DIRECTORY + (place >> 21) % 512 * 8, place | PRESENT_UNCACHED_LARGE)
        for place in (IO_APIC, LOCAL_APIC)
    ]
    entries.append((SECOND_TABLE + 3 * 8, DIRECTORY | 3))
    # mov dword [address], value; mov rax, cr3; mov cr3, rax
    stores = b"".join(b"\xc7\x04\x25" + struct.pack("<II", *entry) for entry in entries)
    return stores + b"\x0f\x20\xd8\x0f\x22\xd8"


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
