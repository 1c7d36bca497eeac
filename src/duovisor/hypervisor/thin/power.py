"""Registers with which the guest ends, resets or laments itself; and the button that asks it to.

``acpi.py`` tells the guest where they are. ACPI 6.4: 4.8.3.7 (sleep control), 4.8.3.6 (reset).
"""

from __future__ import annotations

import os

from duovisor.hypervisor.thin import acpi, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.hypervisor.thin.interrupts import InterruptRoutes

_SLEEP_ENABLE = 1 << 5
_PANICKED = 1  # PVPANIC_PANICKED


class PowerPorts:
    """Sleep control, sleep status and reset."""

    def __init__(self, on_reset: Callable[[], None], on_off: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._on_off = on_off

    def read(self, offset: int, size: int) -> int:
        """It never slept, so there is nothing to wake up from."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Switch off, or reset; anything else is ignored."""
        off = acpi.SLEEP_TYPE_OFF << 2 | _SLEEP_ENABLE
        if (offset, value & 0xFF) == (acpi.RESET_REGISTER, acpi.RESET_VALUE):
            self._on_reset()
        elif offset == acpi.SLEEP_CONTROL and value & 0x3C == off:
            self._on_off()


class PanicPort:
    """pvpanic: reading says which events it knows, writing one reports it."""

    def __init__(self, on_panic: Callable[[], None]) -> None:
        self._on_panic = on_panic

    def read(self, offset: int, size: int) -> int:
        return _PANICKED

    def write(self, offset: int, size: int, value: int) -> None:
        if value & _PANICKED:
            self._on_panic()


class PowerButton:
    """The generic event device's interrupt: the guest's ACPI turns it into a press of the button."""

    def __init__(self, interrupts: InterruptRoutes) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        interrupts.attach(layout.POWER_BUTTON_PIN, self._eventfd)

    def press(self) -> None:
        """What follows is the guest's choice."""
        os.eventfd_write(self._eventfd, 1)


class DebugPort:
    """What a guest prints before it has a console (earlyprintk=serial), up to a limit; nothing comes back."""

    LINE_STATUS = 5
    READY = 0x60  # 16550A: the transmitter is empty
    BYTES_MAX = 64 << 10

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = self.BYTES_MAX

    def read(self, offset: int, size: int) -> int:
        """Ready to print; everywhere else all ones, so that nobody takes it for a serial port."""
        return self.READY if offset == self.LINE_STATUS else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and self._left:
            self._left -= 1
            try:
                os.write(self._descriptor, bytes((value & 0xFF,)))
            except OSError:
                self._left = 0  # nobody can read it
