"""The one table of what an error code means outside: HTTP status and exit code.

Exit codes: 0 success · 2 the command or specification is wrong · 3 not found · 4 in use, or changed by
somebody else · 5 this host cannot · 6 a program or VMM failed · 7 timed out · 8 not allowed · 1 anything
else. 130 is an interrupt, as in every shell.
"""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """What an error code becomes: as the status of an HTTP reply, and as the exit code of a command."""

    http_status: int
    exit_code: int


UNKNOWN = Meaning(500, 1)

_WRONG_REQUEST = Meaning(422, 2)
_NOT_FOUND = Meaning(404, 3)
_CONFLICT = Meaning(409, 4)
_HOST_CANNOT = Meaning(409, 5)
_FAILED = Meaning(500, 6)
_TIMED_OUT = Meaning(504, 7)

MEANINGS: dict[str, Meaning] = {
    # spec
    "spec-invalid": _WRONG_REQUEST,
    "spec-unreadable": _WRONG_REQUEST,
    # hardware
    "hardware": _FAILED,
    "accelerator-unavailable": _HOST_CANNOT,
    "qemu-unusable": _HOST_CANNOT,
    # processes
    "process": _FAILED,
    "program-not-found": _HOST_CANNOT,
    "program-failed": _FAILED,
    "program-timeout": _TIMED_OUT,
    # hypervisor
    "hypervisor": _FAILED,
    "wrong-state": _CONFLICT,
    "kvm-refused": _HOST_CANNOT,
    "boot-image": Meaning(409, 2),
    "thin-config": _FAILED,
    "plan-refused": _WRONG_REQUEST,
    "vmm-start-failed": _FAILED,
    "vmm-gone": Meaning(409, 6),
    "qmp-refused": _FAILED,
    "outcome-unknown": _TIMED_OUT,
    "memory-file": _HOST_CANNOT,
    "unplug-timeout": _TIMED_OUT,
    "unplug-refused": _CONFLICT,
    "tray-locked": _CONFLICT,
    "migration-stream": _FAILED,
    "migration-untranslatable": _HOST_CANNOT,
    "migration-failed": _FAILED,
    # channel and drivers
    "channel": _FAILED,
    "driver-refused": _FAILED,
    "channel-closed": _FAILED,
    "channel-device": _FAILED,
    "channel-memory": _FAILED,
    "channel-protocol": _FAILED,
    "channel-queue": _FAILED,
    # controlling: machines
    "controlling": _FAILED,
    "name-in-use": _CONFLICT,
    "vm-not-found": _NOT_FOUND,
    "device-not-found": _NOT_FOUND,
    "revision-conflict": Meaning(412, 4),
    "busy": _CONFLICT,
    "shutdown-timeout": _TIMED_OUT,
    "no-graphics": Meaning(409, 2),
    "vm-change-refused": _WRONG_REQUEST,
    "memory-too-large": _HOST_CANNOT,
    "processors-taken": _CONFLICT,
    "disk-file": Meaning(409, 2),
    "disk-locked": _CONFLICT,
    "driver-file": Meaning(409, 2),
    "key-file": Meaning(409, 2),
    "network": Meaning(409, 2),
    "partition-failed": _FAILED,
    "partition-gone": _FAILED,
    "partition-refused": _FAILED,
    "host-lacks": _HOST_CANNOT,
    "boot-file": Meaning(409, 2),
    "plug-refused": _CONFLICT,
    "memory-in-use": _CONFLICT,
    "move-refused": _CONFLICT,
    "move-failed": _FAILED,
    "agent": _FAILED,
    "agent-silent": _TIMED_OUT,
    "agent-refused": Meaning(409, 6),
    # controlling: storage
    "pool-not-found": _NOT_FOUND,
    "pool-exists": _CONFLICT,
    "pool-refused": Meaning(409, 2),
    "pool-in-use": _CONFLICT,
    "pool-unavailable": _HOST_CANNOT,
    "pool-full": Meaning(409, 5),
    "volume-not-found": _NOT_FOUND,
    "volume-exists": _CONFLICT,
    "volume-refused": Meaning(409, 2),
    "volume-in-use": _CONFLICT,
    "volume-broken": Meaning(409, 6),
    "volume-content": Meaning(409, 2),
    # controlling: snapshots
    "snapshot-not-found": _NOT_FOUND,
    "snapshot-exists": _CONFLICT,
    "snapshot-refused": _CONFLICT,
    "snapshot-full": _HOST_CANNOT,
    "snapshot-broken": Meaning(409, 6),
    # controlling: networks
    "network-not-found": _NOT_FOUND,
    "network-exists": _CONFLICT,
    "network-refused": Meaning(409, 2),
    "network-in-use": _CONFLICT,
    "subnet-refused": Meaning(409, 2),
    "forward-exists": _CONFLICT,
    "forward-not-found": _NOT_FOUND,
    # controlling: images and the probe guest
    "image-not-found": _NOT_FOUND,
    "image-broken": Meaning(409, 6),
    "image-build-failed": _HOST_CANNOT,
    "image-exists": _CONFLICT,
    "image-use": Meaning(409, 2),
    "download-failed": Meaning(409, 6),
    "guest-timeout": _TIMED_OUT,
    "guest-gone": _FAILED,
    "guest-protocol": _FAILED,
    "storage-job-failed": _FAILED,
    # controlling: store
    "store": _FAILED,
    "store-request-invalid": _WRONG_REQUEST,
    "store-compacted": Meaning(410, 6),
    "store-revision-future": _WRONG_REQUEST,
    "store-closed": Meaning(503, 6),
    "store-in-use": _CONFLICT,
    "store-corrupt": Meaning(500, 5),
    "store-format": Meaning(500, 5),
    "store-read-only": Meaning(503, 5),
    "store-full": Meaning(507, 5),
    "store-io": Meaning(500, 5),
    "document-invalid": Meaning(500, 5),
    "document-too-new": Meaning(500, 5),
    "document-exists": _CONFLICT,
    "document-not-found": _NOT_FOUND,
    "document-conflict": Meaning(412, 4),
    "lease-not-found": _NOT_FOUND,
    # controlling: service
    "service": _FAILED,
    "internal": Meaning(500, 6),
    "service-config": Meaning(500, 2),
    "listen-failed": Meaning(500, 5),
    "stopping": Meaning(503, 4),
    "not-authenticated": Meaning(401, 8),
    "not-allowed": Meaning(403, 8),
    "no-such-path": _NOT_FOUND,
    "method-not-allowed": Meaning(405, 2),
    "request-invalid": _WRONG_REQUEST,
    "request-too-large": Meaning(413, 2),
    "precondition-required": Meaning(428, 2),
    "operation-not-found": _NOT_FOUND,
    "operation-finished": _CONFLICT,
    "operation-cancelled": Meaning(409, 6),
    "operation-interrupted": Meaning(409, 6),
    "too-many-operations": Meaning(429, 4),
    "token-not-found": _NOT_FOUND,
    "token-exists": _CONFLICT,
    # comparison: never in a reply, for it is a command's own
    "comparison": _FAILED,
    "comparison-folder": Meaning(409, 2),
    "comparison-source": _HOST_CANNOT,
    "measure-failed": _FAILED,
    "measure-skipped": _HOST_CANNOT,
    "measured-service": _FAILED,
    # client: never in a reply, for it is about replies
    "service-address": _WRONG_REQUEST,
    "service-unreachable": Meaning(503, 6),
    "service-start-failed": Meaning(503, 6),
    "service-stop-failed": Meaning(503, 6),
    "service-connection-lost": Meaning(504, 7),
    "service-reply": Meaning(502, 6),
    "transfer": Meaning(409, 2),
}


def meaning_of(code: str) -> Meaning:
    """What an error code means; ``UNKNOWN`` where the table has no line for it."""
    return MEANINGS.get(code, UNKNOWN)
