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
    "program-not-found": 5,
    "program-failed": 6,
    "program-timeout": 7,
}


def exit_code_of(error: DuovisorError) -> int:
    """The exit code for an error; 1 where the table has no line for its code."""
    return EXIT_CODES.get(error.code, 1)
