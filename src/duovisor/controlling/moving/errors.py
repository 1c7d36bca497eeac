"""Why a VM does not move to another VMM, or did not."""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class MoveRefusedError(ControllingError):
    """Something speaks against the move, found before anything was touched."""

    code = "move-refused"


class MoveFailedError(ControllingError):
    """The move failed under way; the VM runs on where it ran."""

    code = "move-failed"
