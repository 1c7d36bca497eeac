"""Errors of the hardware package; the tree is drawn in ``duovisor.errors``.

::

    HardwareError
    ├── AcceleratorUnavailableError   KVM was asked for and cannot run a guest here
    └── QemuUnusableError             the binary is no QEMU that can be asked, or lacks what we need
"""

from __future__ import annotations

from duovisor.errors import DuovisorError


class HardwareError(DuovisorError):
    """Root of what hardware can raise."""

    code = "hardware"


class AcceleratorUnavailableError(HardwareError):
    """The accelerator that was asked for does not work on this host."""

    code = "accelerator-unavailable"


class QemuUnusableError(HardwareError):
    """The QEMU binary did not answer as a QEMU for x86-64 servers does."""

    code = "qemu-unusable"
