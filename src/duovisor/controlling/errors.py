"""Errors of the controlling package; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ControllingError(DuovisorError):
    """Root of what controlling can raise."""

    code = "controlling"
