"""Errors of pools and volumes.

::

    ControllingError
    ├── PoolNotFoundError        pool-not-found      there is no pool of that name
    ├── PoolExistsError          pool-exists         there is one already
    ├── PoolRefusedError         pool-refused        a place that cannot be a pool
    ├── PoolInUseError           pool-in-use         it has volumes, or something depends on one
    ├── PoolUnavailableError     pool-unavailable    its folder is not there, or cannot be written to
    ├── PoolFullError            pool-full           it has not that much free space
    ├── VolumeNotFoundError      volume-not-found
    ├── VolumeExistsError        volume-exists
    ├── VolumeRefusedError       volume-refused      what was asked for cannot be done to this volume
    ├── VolumeInUseError         volume-in-use       a VM or a clone needs it as it is
    ├── VolumeBrokenError        volume-broken       its file is missing, or no plain file
    └── VolumeContentError       volume-content      an image that is not what it should be
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class PoolNotFoundError(ControllingError):
    """There is no pool of that name."""

    code = "pool-not-found"


class PoolExistsError(ControllingError):
    """There is a pool of that name already."""

    code = "pool-exists"


class PoolRefusedError(ControllingError):
    """The place cannot be a pool: no folder, of a kind that is not supported, or part of another pool."""

    code = "pool-refused"


class PoolInUseError(ControllingError):
    """The pool has volumes, or somebody depends on one of them."""

    code = "pool-in-use"


class PoolUnavailableError(ControllingError):
    """The pool's folder is not there or cannot be used now."""

    code = "pool-unavailable"


class PoolFullError(ControllingError):
    """The pool has less free space than is needed."""

    code = "pool-full"


class VolumeNotFoundError(ControllingError):
    """There is no volume of that name."""

    code = "volume-not-found"


class VolumeExistsError(ControllingError):
    """There is a volume, or a file in its place, already."""

    code = "volume-exists"


class VolumeRefusedError(ControllingError):
    """This cannot be done to the volume."""

    code = "volume-refused"


class VolumeInUseError(ControllingError):
    """A VM, a disk tool or a linked clone needs the volume as it is."""

    code = "volume-in-use"


class VolumeBrokenError(ControllingError):
    """The volume's file is missing, or is no plain file."""

    code = "volume-broken"


class VolumeContentError(ControllingError):
    """The image is not what it should be: another checksum or format, cut off, or based on other files."""

    code = "volume-content"
