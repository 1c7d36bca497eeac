"""The bus: whose an address is."""

from __future__ import annotations

import pytest

from duovisor.hypervisor.thin.bus import Bus


class Register:
    """Remembers what is written, and answers with more than was asked for."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return 0x1122334455667788_99 + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


def test_an_access_goes_to_whom_it_belongs() -> None:
    bus, first, second = Bus(), Register(), Register()
    bus.add(0x200, 0x10, second)
    bus.add(0x100, 0x10, first)
    bus.write(0x10F, 1, 7)
    bus.write(0x200, 4, 8)
    assert (first.written, second.written) == ([(15, 1, 7)], [(0, 4, 8)])
    assert bus.read(0x101, 2) == 0x889A
    assert bus.unclaimed == 0


def test_what_nobody_owns_reads_all_ones_and_is_counted() -> None:
    bus = Bus()
    bus.add(0x100, 0x10, Register())
    assert [bus.read(address, 4) for address in (0xFF, 0x110, 1 << 64)] == [0xFFFF_FFFF] * 3
    bus.write(0, 1, 0)
    assert bus.unclaimed == 4


@pytest.mark.parametrize(("base", "size"), [(0x100, 1), (0x0, 0x101), (0x10F, 8), (0x0, 0x1000)])
def test_an_address_has_one_owner(base: int, size: int) -> None:
    bus = Bus()
    bus.add(0x100, 0x10, Register())
    with pytest.raises(ValueError, match="is taken"):
        bus.add(base, size, Register())
    bus.remove(0x100)
    bus.add(base, size, Register())
