"""The one table from error code to exit code.

0 success · 2 the command or specification is wrong · 3 not found · 4 in use · 5 this host cannot ·
6 a program or VMM failed · 7 timed out · 1 anything else. 130 is an interrupt, as in every shell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duovisor.errors import DuovisorError

EXIT_CODES = {
    "spec-invalid": 2,
    "spec-unreadable": 2,
    "accelerator-unavailable": 5,
    "qemu-unusable": 5,
    "program-not-found": 5,
    "program-failed": 6,
    "program-timeout": 7,
    "wrong-state": 4,
    "plan-refused": 2,
    "hypervisor": 6,
    "vmm-start-failed": 6,
    "vmm-gone": 6,
    "qmp-refused": 6,
    "outcome-unknown": 7,
    "memory-file": 5,
    "controlling": 6,
    "name-in-use": 4,
    "vm-not-found": 3,
    "memory-too-large": 5,
    "disk-file": 2,
    "disk-locked": 4,
    "partition-failed": 6,
    "host-lacks": 5,
    "boot-file": 2,
    "process": 6,
    "image-not-found": 3,
    "image-broken": 6,
    "image-build-failed": 5,
    "guest-timeout": 7,
    "guest-gone": 6,
    "guest-protocol": 6,
    "storage-job-failed": 6,
    "channel": 6,
    "channel-closed": 6,
    "channel-protocol": 6,
    "channel-memory": 6,
    "channel-queue": 6,
    "driver-refused": 6,
    "store-request-invalid": 2,
    "document-not-found": 3,
    "lease-not-found": 3,
    "store-in-use": 4,
    "document-exists": 4,
    "document-conflict": 4,
    "store": 6,
    "store-compacted": 6,
    "store-revision-future": 2,
    "store-closed": 6,
    "store-corrupt": 5,
    "store-format": 5,
    "store-read-only": 5,
    "store-full": 5,
    "store-io": 5,
    "document-invalid": 5,
    "document-too-new": 5,
}


def exit_code_of(error: DuovisorError) -> int:
    """The exit code for an error; 1 where the table has no line for its code."""
    return EXIT_CODES.get(error.code, 1)
