"""The root of every error a user can meet.

::

    DuovisorError
    ├── SpecError          spec/errors.py         what was asked for cannot be meant
    ├── HardwareError      hardware/errors.py     this machine cannot do it
    ├── HypervisorError    hypervisor/errors.py   a VMM failed or refused
    ├── ChannelError       channel/errors.py      a peer broke the vhost-user protocol
    ├── ControllingError   controlling/errors.py  storage, networks, partitions, images
    └── ComparisonError    comparison/errors.py   a comparison of the designs cannot go on

Each concrete error has a stable ``code`` (kebab-case); ``error_table.py`` says the HTTP status and exit code
of each.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class DuovisorError(Exception):
    """Something failed in a way that the user can be told in one line.

    ``message`` says what was wrong and with which value; ``remedy`` says what to do about it.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message
