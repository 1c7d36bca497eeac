"""A network of the comparison's own, or the reason why there is none."""

from __future__ import annotations

import os
import subprocess

import pytest

from duovisor.comparison import own_network
from duovisor.comparison.own_network import BRIDGE, HOST, try_own_network
from duovisor.process import ProgramFailedError


def list_addresses() -> str:
    return subprocess.run(["ip", "-brief", "addr"], check=True, capture_output=True, text=True).stdout


def test_without_root_it_is_said_that_root_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with try_own_network() as problem:
        assert problem is not None
        assert str(problem) == "bridges and TAPs need root (run the comparison as root)"


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_it_is_there_meanwhile_and_nowhere_else() -> None:
    before = list_addresses()
    with try_own_network() as problem:
        if problem is not None:
            pytest.skip(problem.message)
        inside = list_addresses()
        assert BRIDGE in inside
        assert HOST in inside
    assert list_addresses() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_what_fails_is_a_reason_and_leaves_the_host_s_network(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list_addresses()

    def fail(argv: list[str]) -> str:
        raise ProgramFailedError(argv, 2, "Operation not permitted")

    monkeypatch.setattr(own_network, "check_own_network", lambda: None)
    monkeypatch.setattr("duovisor.process.run", fail)
    with try_own_network() as problem:
        assert problem is not None
        assert "Operation not permitted" in problem.message
        monkeypatch.undo()
        assert list_addresses() == before
