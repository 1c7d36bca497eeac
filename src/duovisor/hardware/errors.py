"""Errors of the hardware package; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class HardwareError(DuovisorError):
    """Root of what hardware can raise."""

    code = "hardware"
