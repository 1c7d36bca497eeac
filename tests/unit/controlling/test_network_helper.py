"""What limits the network helper, on a program that does nothing."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from duovisor.controlling.network_helper import limit_process
from duovisor.process import start

if TYPE_CHECKING:
    from pathlib import Path


def test_limits_are_lowered_and_never_raised(tmp_path: Path) -> None:
    helper = start(("sleep", "60"), role="helper", log=tmp_path / "log")
    try:
        resource.prlimit(helper.pid, resource.RLIMIT_NOFILE, (100, 100))
        limit_process(helper.pid)
        assert resource.prlimit(helper.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(helper.pid, resource.RLIMIT_DATA) == (256 << 20, 256 << 20)
        assert resource.prlimit(helper.pid, resource.RLIMIT_NOFILE) == (100, 100)
    finally:
        helper.kill_now()
