"""From an error to the exit code of a command; the table itself is ``duovisor.error_table``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.error_table import MEANINGS, meaning_of

if TYPE_CHECKING:
    from duovisor.errors import DuovisorError

EXIT_CODES = {code: meaning.exit_code for code, meaning in MEANINGS.items()}


def exit_code_of(error: DuovisorError) -> int:
    """The exit code for an error; 1 where the table has no line for its code."""
    return meaning_of(error.code).exit_code
