"""A pool of logical volumes in an LVM thin pool; only those that bear our tag are touched (decision 035).

A thin volume takes what was written to it, and a snapshot of one shares what both have; neither needs the
other, which the thin pool's own counts of references see to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage import lvm
from duovisor.controlling.storage.backend import HALF, UPLOAD, Look, Space, explaining, open_locked, sync
from duovisor.controlling.storage.errors import (
    PoolRefusedError,
    PoolUnavailableError,
    VolumeBrokenError,
    VolumeExistsError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.records import PoolKind, VolumeFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

TAG = "duovisor"
DEV, DEVICES_BY_NUMBER = Path("/dev"), Path("/sys/dev/block")
SECTOR_BYTES = 512
THIN, THIN_POOL = "thin", "thin-pool"
# health of a pool that can still be read and given room
USABLE = ("", "out_of_data")


class Place(NamedTuple):
    """A thin pool by its volume group and name."""

    group: str
    name: str

    @classmethod
    def parse(cls, path: str) -> Place:
        """Read ``/dev/GROUP/NAME`` or ``GROUP/NAME``. Raises ``PoolRefusedError``."""
        group, slash, name = path.removeprefix("/dev/").partition("/")
        if not (group and slash and name) or "/" in name or group.startswith("-") or name.startswith("-"):
            raise PoolRefusedError(
                f"{path!r} is no thin pool",
                remedy="duovisor pool create NAME --kind lvm-thin --vg GROUP --thin-pool NAME",
            )
        return cls(group, name)

    @property
    def path(self) -> str:
        """As the store has it."""
        return f"/dev/{self.group}/{self.name}"


class ThinPool:
    """A ``Backend``: the thin volumes of one thin pool that we made."""

    kind = PoolKind.LVM_THIN
    formats: tuple[VolumeFormat, ...] = (VolumeFormat.RAW,)
    takes_snapshots = True
    are_devices = True
    may_hang = True

    def __init__(self, pool: str, path: str) -> None:
        self.pool = pool
        self.place = Place.parse(path)
        self.path = DEV / self.place.group

    def check(self) -> None:
        """Raises ``PoolUnavailableError`` when it is not there, or is damaged."""
        self._find_pool(lvm.list_volumes(self.place.group))

    def read_space(self) -> Space:
        """How much of its data, and of its metadata, is used; a thin pool may grow by itself."""
        found = self._find_pool(lvm.list_volumes(self.place.group))
        free = found.size_bytes * (100 - (found.data_percent or 0)) / 100
        return Space(found.size_bytes, int(free), round(1 - (found.metadata_percent or 0) / 100, 4))

    def _find_pool(self, volumes: dict[str, lvm.LogicalVolume]) -> lvm.LogicalVolume:
        found = volumes.get(self.place.name)
        if found is None or found.type != THIN_POOL:
            raise PoolUnavailableError(f"pool {self.pool}: there is no thin pool {self.place.path} any more")
        if not found.is_active:
            lvm.run("lvchange", "-q", "-ay", "-K", self._full(self.place.name))
            found = lvm.list_volumes(self.place.group)[self.place.name]
        if found.health not in USABLE:
            raise PoolUnavailableError(
                f"pool {self.pool}: LVM says that {self.place.path} is {found.health.replace('_', ' ')}",
                remedy="see lvmthin(7), metadata space exhaustion and repair",
            )
        return found

    def find_file(self, path: str) -> str | None:
        """By the number of the device, whatever it is called."""
        try:
            found = os.stat(path)
            if not stat.S_ISBLK(found.st_mode):
                return None
            number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
            name = (DEVICES_BY_NUMBER / number / "dm/name").read_text().strip()
        except OSError:
            return None
        group, volume = lvm.parse_device_name(name)
        return volume if group == self.place.group else None

    def path_of(self, file: str) -> Path:
        """The link that LVM, or udev, makes."""
        return self.path / file

    def exists(self, file: str) -> bool:
        """Whether one of ours is there."""
        return self._is_ours(lvm.list_volumes(self.place.group).get(file))

    def require_absent(self, file: str) -> None:
        """The names of a group are all its pools'."""
        if problem := lvm.find_name_problem(self.place.group, file):
            raise VolumeRefusedError(f"no logical volume can be called {file}: {problem}")
        if file in lvm.list_volumes(self.place.group):
            raise VolumeExistsError(
                f"volume group {self.place.group} has a logical volume {file} already",
                remedy="choose another name",
            )

    def look_at(self, file: str) -> Look:
        """Raises ``VolumeBrokenError`` unless it is a thin volume of ours."""
        return _look(self._find(file, lvm.list_volumes(self.place.group)))

    def _find(self, file: str, volumes: dict[str, lvm.LogicalVolume]) -> lvm.LogicalVolume:
        found = volumes.get(file)
        if found is None or not self._is_ours(found):
            problem = "is missing" if found is None else "is not ours; it was replaced"
            raise VolumeBrokenError(f"logical volume {self._full(file)} {problem}")
        return found

    def look_at_all(self, files: Iterable[str]) -> dict[str, Look]:
        """LVM is asked once."""
        found = lvm.list_volumes(self.place.group)
        self._find_pool(found)
        return {file: _look(found[file]) for file in files if self._is_ours(found.get(file))}

    def read_size(self, file: str, volume_format: VolumeFormat) -> int:
        """A raw volume is all of it."""
        return self.look_at(file).file_bytes

    def prepare(self, file: str) -> None:
        """Activate it, if the host did not."""
        found = lvm.list_volumes(self.place.group)
        self._find_pool(found)
        if not self._find(file, found).is_active:
            lvm.run("lvchange", "-q", "-ay", "-K", self._full(file))

    @contextlib.contextmanager
    def open(self, file: str, *, writing: bool) -> Iterator[int]:
        """See ``Backend``."""
        self.prepare(file)
        with open_locked(self.path_of(file), writing=writing) as descriptor:
            yield descriptor

    @contextlib.contextmanager
    def excluding(self, file: str) -> Iterator[None]:
        """LVM itself removes none that is open, by us neither."""
        with self.open(file, writing=True):
            pass
        yield

    def make_half(self, uuid: str, size_bytes: int, prefix: str = HALF) -> Path:
        """A thin volume, which reads as zeros; LVM makes it a multiple of its extents."""
        sectors = max(1, -(-size_bytes // SECTOR_BYTES))
        words = ("-V", f"{sectors * SECTOR_BYTES}b", "-T", self._full(self.place.name), "-W", "n")
        lvm.run("lvcreate", "-q", "-kn", "-n", f"{prefix}{uuid}", "--addtag", TAG, *words)
        return Path(os.path.realpath(self.path_of(f"{prefix}{uuid}")))

    def take_snapshot(self, file: str, uuid: str) -> None:
        """Of one that is active, as it is open."""
        words = ("-kn", "-n", f"{HALF}{uuid}", "--addtag", TAG, self._full(file))
        lvm.run("lvcreate", "-q", "-s", *words)

    def promote(self, uuid: str) -> None:
        """See ``Backend``."""
        lvm.run("lvrename", "-q", self.place.group, f"{UPLOAD}{uuid}", f"{HALF}{uuid}")

    def put_in_place(self, uuid: str, file: str) -> None:
        """LVM renames none over another."""
        with self.explaining():
            sync(self.path_of(f"{HALF}{uuid}"))
        lvm.run("lvrename", "-q", self.place.group, f"{HALF}{uuid}", file)

    def grow(self, file: str, descriptor: int, size_bytes: int) -> None:
        """Also while a VM has it open."""
        self.look_at(file)
        lvm.run("lvextend", "-q", "-L", f"{size_bytes}b", self._full(file))

    def remove(self, file: str) -> None:
        """One that is not ours stays."""
        if self.exists(file):
            lvm.run("lvremove", "-q", "-f", self._full(file))

    def remove_halves(self) -> list[str]:
        """See ``Backend``."""
        volumes = lvm.list_volumes(self.place.group)
        found = [name for name in volumes if name.startswith((HALF, UPLOAD)) and self._is_ours(volumes[name])]
        for name in found:
            lvm.run("lvremove", "-q", "-f", self._full(name))
        return [str(self.path_of(name)) for name in found]

    def explaining(self) -> AbstractContextManager[None]:
        """See ``Backend``."""
        return explaining(self.pool, self.path)

    def _is_ours(self, volume: lvm.LogicalVolume | None) -> bool:
        return (
            volume is not None
            and volume.type == THIN
            and volume.pool == self.place.name
            and TAG in volume.tags
        )

    def _full(self, name: str) -> str:
        return f"{self.place.group}/{name}"


def prepare_thin_pool(path: str) -> str:
    """A thin pool of the host as a new pool: found, active, and told to fail when it is full.

    Returns where it is. Raises ``PoolRefusedError`` or ``HostLacksError``; it blocks.
    """
    place = Place.parse(path)
    try:
        found = lvm.list_volumes(place.group).get(place.name)
    except PoolUnavailableError as error:
        raise PoolRefusedError(f"{place.path}: {error.message}", remedy="vgs shows all groups") from error
    if found is None or found.type != THIN_POOL:
        what = "there is no such logical volume" if found is None else f"it is of the type {found.type}"
        raise PoolRefusedError(
            f"{place.path} is no thin pool: {what}",
            remedy=f"lvcreate --type thin-pool -L SIZE -n {place.name} {place.group} makes one",
        )
    if not found.zeroes:
        raise PoolRefusedError(
            f"{place.path} does not zero what it hands out: volumes would show what others held",
            remedy=f"lvchange --zero y {place.group}/{place.name}",
        )
    try:
        ThinPool(path, place.path).check()
    except PoolUnavailableError as error:
        raise PoolRefusedError(
            error.message, remedy=error.remedy or "does the kernel have dm_thin_pool (modprobe dm_thin_pool)?"
        ) from error
    if not found.fails_when_full:  # or all that is written waits for a minute, ours and others'
        lvm.run("lvchange", "-q", "--errorwhenfull", "y", f"{place.group}/{place.name}")
    return place.path


def _look(found: lvm.LogicalVolume) -> Look:
    return Look(found.size_bytes, int(found.size_bytes * (found.data_percent or 0) / 100), None)
