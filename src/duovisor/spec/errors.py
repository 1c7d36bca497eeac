"""Errors of the spec package; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class SpecError(DuovisorError):
    """What was asked for cannot be meant."""

    code = "spec-invalid"


class SpecFileError(SpecError):
    """The specification file cannot be read, or is not TOML, YAML or JSON."""

    code = "spec-unreadable"
