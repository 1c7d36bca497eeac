"""Errors of the channel package; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ChannelError(DuovisorError):
    """Root of what channel can raise."""

    code = "channel"
