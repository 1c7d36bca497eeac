"""Errors of moving a guest from one VMM to another.

::

    HypervisorError
    ├── StreamError        the migration stream is not what we know of QEMU's
    ├── TranslationError   the stream is sound, but the other design cannot carry what is in it
    └── HandoverError      a VMM could not save or load its state
"""

from __future__ import annotations

from duovisor.hypervisor.errors import HypervisorError


class StreamError(HypervisorError):
    """A migration stream that is broken, or has something in it that we do not know; ``offset`` in bytes."""

    code = "migration-stream"

    def __init__(self, offset: int, message: str) -> None:
        self.offset = offset
        super().__init__(f"migration stream, byte {offset}: {message}")


class TranslationError(HypervisorError):
    """The guest's devices have a state that the other design cannot carry."""

    code = "migration-untranslatable"


class HandoverError(HypervisorError):
    """A VMM could not save or load its devices' state."""

    code = "migration-failed"
