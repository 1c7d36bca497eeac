"""What the tests of the controlling layer have in common."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STRANGER = 54321


def let_in(folder: Path) -> None:
    """Let a stranger into a folder of pytest's and those above it, if we can become one."""
    for each in (folder, *folder.parents):
        if os.geteuid() == 0 and not each.stat().st_mode & 0o001:
            each.chmod(0o755)


def run_as_stranger(work: Callable[[], None]) -> None:
    """Run ``work`` in a child process as an unprivileged user; an exception there fails the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            work()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
