"""What supervision tells of drivers: what happened to one, and how each device is served."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class DriverEventKind(StrEnum):
    """What happened to the driver of a device."""

    DIED = "driver-died"
    HUNG = "driver-hung"
    RECOVERED = "driver-recovered"
    REPLACED = "driver-replaced"
    FAILED = "driver-failed"
    FORMAT_DIED = "format-died"
    FORMAT_RECOVERED = "format-recovered"
    GONE = "device-gone"
    FULL = "disk-full"
    ROOM = "disk-room"
    MEMORY_LOADED = "memory-loaded"
    MEMORY_LOST = "memory-lost"


class DriverEvent(NamedTuple):
    """Something that happened to the driver of ``device``."""

    kind: DriverEventKind
    device: str
    message: str


Tell = Callable[[DriverEvent], None]


def ignore_driver_events(event: DriverEvent) -> None:
    """A ``Tell`` for who does not care."""


class DeviceState(StrEnum):
    """``running``: a driver serves; ``recovering``: one died and the next does not serve yet;

    ``failed``: its drivers kept dying, and the device does what its policy says.
    """

    RUNNING = "running"
    RECOVERING = "recovering"
    FAILED = "failed"


class DriverStatus(BaseModel):
    """How a device is served now. ``code`` names the driver's code; pids are of the host.

    ``deaths`` and ``last_pause_ms`` (from the end of one driver until the next served) count since the VM
    started or was adopted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    state: DeviceState
    pid: int | None
    spare_pid: int | None
    code: str
    deaths: int
    last_pause_ms: float | None
    reason: str


class Replacement(NamedTuple):
    """A driver was replaced on demand: the codes before and after, and how long nobody served (ms)."""

    old_pid: int | None
    new_pid: int
    old_code: str
    new_code: str
    pause_ms: float
