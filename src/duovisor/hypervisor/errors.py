"""Errors of the hypervisor package; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class HypervisorError(DuovisorError):
    """Root of what hypervisor can raise."""

    code = "hypervisor"
