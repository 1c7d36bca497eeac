"""Errors of the controlling layer; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ControllingError(DuovisorError):
    """Root of what the controlling layer can raise."""

    code = "controlling"


class NameInUseError(ControllingError):
    """A VM of that name runs already."""

    code = "name-in-use"


class MachineNotFoundError(ControllingError):
    """No VM of that name runs."""

    code = "vm-not-found"


class MemoryTooLargeError(ControllingError):
    """The guest's memory exceeds what the host has."""

    code = "memory-too-large"


class ProcessorsTakenError(ControllingError):
    """Other VMs have reserved the processors that this one wants reserved."""

    code = "processors-taken"


class DiskFileError(ControllingError):
    """A disk's file is missing, unreadable, or not something that can be a disk."""

    code = "disk-file"


class KeyFileError(ControllingError):
    """The key of an encrypted disk is missing, not a key, or open to others."""

    code = "key-file"


class DiskLockedError(ControllingError):
    """A disk's file is in use by another VM."""

    code = "disk-locked"


class NetworkError(ControllingError):
    """A bridge is missing or is none, or a TAP cannot be put on it."""

    code = "network"


class DriverFileError(ControllingError):
    """A driver's file is missing, unreadable, or no driver."""

    code = "driver-file"


class PartitionError(ControllingError):
    """A driver partition or network helper ended when it should not have; its last words are shown."""

    code = "partition-failed"


class HostLacksError(ControllingError):
    """This host lacks a program or a permission that the design needs."""

    code = "host-lacks"


class BootFileError(ControllingError):
    """A kernel or initrd cannot be read."""

    code = "boot-file"
