"""What a driver refuses to start with; not in ``controlling.errors``, which no partition holds."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class DriverError(DuovisorError):
    """The driver was started with options or descriptors that it cannot work with."""

    code = "driver-refused"
