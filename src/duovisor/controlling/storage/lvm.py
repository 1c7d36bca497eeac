"""LVM's own program: what it says of a volume group, and what it is told to do.

Sources: lvs(8), lvcreate(8), lvmthin(7); lib/misc/lvm-string.c for names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import NamedTuple

from duovisor import process
from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.storage.errors import (
    PoolFullError,
    PoolUnavailableError,
    VolumeBrokenError,
    VolumeExistsError,
    VolumeInUseError,
)

TIMEOUT_S = 60.0
ELSEWHERE = "/usr/sbin:/sbin"  # an ordinary user's PATH leaves these out
NAME_MAX = 127  # of the device's name, which is VG-LV with each hyphen doubled
RESERVED_STARTS = ("pvmove", "snapshot")
RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare",
    "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
)  # fmt: skip
FIELDS = (
    "lv_name", "lv_size", "pool_lv", "segtype", "lv_tags", "lv_active", "data_percent", "metadata_percent",
    "lv_when_full", "lv_health_status", "zero",
)  # fmt: skip
_SEPARATOR = re.compile("(?<!-)-(?!-)")  # a name may begin or end with no hyphen
# parts of LVM's messages, and what they mean here
_SAID = (
    ("already exists", VolumeExistsError),
    ("ailed to find logical volume", VolumeBrokenError),
    (" in use", VolumeInUseError),
    ("is used by another device", VolumeInUseError),
    ("nsufficient free", PoolFullError),
    ("free space in", PoolFullError),
    ("over the threshold", PoolFullError),
)


class LogicalVolume(NamedTuple):
    """One of a volume group; percents are ``None`` while it is not active."""

    name: str
    size_bytes: int
    type: str
    pool: str
    tags: frozenset[str]
    is_active: bool
    data_percent: float | None
    metadata_percent: float | None
    fails_when_full: bool
    health: str
    zeroes: bool


def list_volumes(group: str) -> dict[str, LogicalVolume]:
    """The logical volumes of a group by name. Raises as ``run``."""
    words = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", ",".join(FIELDS), group)
    return parse_report(run("lvs", *words))


def parse_report(text: str) -> dict[str, LogicalVolume]:
    """What ``lvs --reportformat json`` printed; pure."""
    rows = [row for part in json.loads(text)["report"] for row in part["lv"]]
    return {row["lv_name"]: _read(row) for row in rows}


def _read(row: dict[str, str]) -> LogicalVolume:
    return LogicalVolume(
        name=row["lv_name"],
        size_bytes=int(row["lv_size"]),
        type=row["segtype"],
        pool=row["pool_lv"],
        tags=frozenset(row["lv_tags"].split(",")) - {""},
        is_active=row["lv_active"] == "active",
        data_percent=_percent(row["data_percent"]),
        metadata_percent=_percent(row["metadata_percent"]),
        fails_when_full=row["lv_when_full"] == "error",
        health=row["lv_health_status"],
        zeroes=row["zero"] not in ("", "0"),
    )


def _percent(text: str) -> float | None:
    return float(text) if text else None


def run(command: str, *words: str) -> str:
    """Run one of LVM's commands and return what it printed.

    Raises ``HostLacksError`` without LVM, ``PoolFullError``, ``VolumeExistsError``, ``VolumeInUseError``,
    ``VolumeBrokenError``, or ``PoolUnavailableError`` for all else that it says.
    """
    program = find_program()
    if program is None:
        raise HostLacksError("LVM is not on this host", remedy="apt install lvm2 thin-provisioning-tools")
    # descriptors of ours are closed in it anyway; without the word it complains of the others
    environment = {**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    try:
        return process.run((program, command, *words), timeout_s=TIMEOUT_S, env=environment)
    except process.ProgramFailedError as error:
        for part, kind in _SAID:
            if part in error.last_words:
                raise kind(f"LVM: {error.last_words}") from error
        raise PoolUnavailableError(f"LVM refuses to {command}: {error.last_words}") from error
    except process.ProcessError as error:
        raise PoolUnavailableError(error.message) from error


def find_program() -> str | None:
    """Where LVM's program is."""
    return shutil.which("lvm") or shutil.which("lvm", path=ELSEWHERE)


def find_name_problem(group: str, name: str) -> str | None:
    """Why a logical volume cannot be called so; pure."""
    for part in RESERVED_PARTS:
        if part in name:
            return f"LVM keeps names with {part} for itself"
    if name.startswith(RESERVED_STARTS):
        return "LVM keeps such names for itself"
    if len(build_device_name(group, name)) > NAME_MAX:
        return f"with its group's, the name has more than {NAME_MAX} characters"
    return None


def parse_device_name(device: str) -> tuple[str, str]:
    """The group and logical volume of a device of device-mapper; pure."""
    group, _, name = _SEPARATOR.sub("/", device, count=1).partition("/")
    return group.replace("--", "-"), name.replace("--", "-")


def build_device_name(group: str, name: str) -> str:
    """What device-mapper calls a logical volume; pure."""
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"
