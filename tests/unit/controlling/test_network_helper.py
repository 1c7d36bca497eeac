"""The network helper: its command line, and what limits it, on a program that does nothing."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from duovisor.controlling.errors import HostLacksError, PartitionError
from duovisor.controlling.network_helper import build_passt_argv, limit_process, start_network_helper
from duovisor.process import start
from duovisor.spec.vm import NicSpec


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


def test_passt_command_line() -> None:
    nic = NicSpec.model_validate({"forward": ["2222:22", "udp:0.0.0.0:53:5353", "8080:80"]})
    argv = build_passt_argv(Path("/usr/bin/passt"), nic, 9)
    assert argv[0] == "/usr/bin/passt"
    assert argv[argv.index("--fd") + 1] == "9"
    assert argv[-6:] == (
        "--tcp-ports", "127.0.0.1/2222:22", "--tcp-ports", "127.0.0.1/8080:80",
        "--udp-ports", "0.0.0.0/53:5353",
    )  # fmt: skip
    for option in ("--foreground", "--address", "--gateway"):
        assert option in argv


def test_without_passt_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostLacksError) as caught:
        start_network_helper(None, tmp_path / "nic0.sock", tmp_path, NicSpec())
    assert caught.value.remedy == "apt-get install passt, or use the monolithic design"


def test_nobody_on_the_channel(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="channel nic0 refuses: "):
        start_network_helper(Path("/usr/bin/passt"), tmp_path / "nic0.sock", tmp_path, NicSpec())
