"""Why a device is not plugged into a VM, or out of it."""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class PlugRefusedError(ControllingError):
    """Something speaks against it, found before anything was touched."""

    code = "plug-refused"
