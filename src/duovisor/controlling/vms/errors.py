"""Errors of the VM manager; the first two share their codes with what a foreground VM raises.

::

    ControllingError
    ├── MachineNotFoundError
    │   └── VmNotFoundError        vm-not-found       there is no VM of that name
    ├── NameInUseError
    │   └── VmNameInUseError       name-in-use        there is a VM of that name already
    ├── RevisionConflictError      revision-conflict  somebody else changed the VM first
    ├── DeviceNotFoundError        device-not-found   the VM has no such device with a driver of its own
    ├── BusyError                  busy               another action on this VM is under way
    ├── ShutdownTimeoutError       shutdown-timeout   the guest did not shut down in time
    ├── GraphicsMissingError       no-graphics        the VM has no screen
    └── VmChangeError              vm-change-refused  a change that cannot be meant
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError, MachineNotFoundError, NameInUseError


class VmNotFoundError(MachineNotFoundError):
    """There is no VM of that name."""


class VmNameInUseError(NameInUseError):
    """There is a VM of that name already."""


class DeviceNotFoundError(ControllingError):
    """The VM has no device of that name whose driver runs in a partition."""

    code = "device-not-found"


class RevisionConflictError(ControllingError):
    """The VM was changed since the revision that the caller saw."""

    code = "revision-conflict"


class BusyError(ControllingError):
    """Another action on this VM is under way; nothing was changed."""

    code = "busy"


class ShutdownTimeoutError(ControllingError):
    """The guest was asked to shut down and did not in time; it runs on."""

    code = "shutdown-timeout"


class GraphicsMissingError(ControllingError):
    """The VM has no screen that could be looked at."""

    code = "no-graphics"


class VmChangeError(ControllingError):
    """A change that cannot be meant, such as another name inside the specification."""

    code = "vm-change-refused"
