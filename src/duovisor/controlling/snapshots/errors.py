"""Errors of snapshots.

::

    ControllingError
    ├── SnapshotNotFoundError   snapshot-not-found  the VM has no snapshot of that name
    ├── SnapshotExistsError     snapshot-exists     it has one already
    ├── SnapshotRefusedError    snapshot-refused    this VM, or this host, cannot; nothing was touched
    ├── SnapshotFullError       snapshot-full       there is no room for it
    └── SnapshotBrokenError     snapshot-broken     its files are not what was written
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class SnapshotNotFoundError(ControllingError):
    """The VM has no snapshot of that name."""

    code = "snapshot-not-found"


class SnapshotExistsError(ControllingError):
    """The VM has a snapshot of that name already."""

    code = "snapshot-exists"


class SnapshotRefusedError(ControllingError):
    """What cannot be saved or restored whole is not begun."""

    code = "snapshot-refused"


class SnapshotFullError(ControllingError):
    """A file system has no room for it; what was written is removed again."""

    code = "snapshot-full"


class SnapshotBrokenError(ControllingError):
    """A snapshot's files cannot be read, or are not what was written."""

    code = "snapshot-broken"
