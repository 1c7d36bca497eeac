"""A service that is absent is started: once, with its last words when it fails, and in its own session."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.style.source_tree import ROOT

from duovisor.client.endpoint import Endpoint
from duovisor.client.errors import ServiceStartError
from duovisor.client.service import ServiceClient
from duovisor.client.starting import build_environment, can_connect, ensure_service

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = (sys.executable, "-m", "tests.api.fake_service")


@pytest.fixture
def socket_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the service is to listen, in folders of its own; it is ended with the test."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        folder = Path(name)
        for variable in ("state", "runtime", "cache"):
            monkeypatch.setenv(f"DUOVISOR_{variable.upper()}_DIR", str(folder / variable))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        path = folder / "runtime/duovisord.sock"
        yield path
        if can_connect(path):
            end(read_pid(path))


def read_pid(path: Path) -> int:
    with ServiceClient(Endpoint(path)) as client:
        return int(client.get("/v1/service")["pid"])


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)


def test_many_clients_start_one_service(socket_path: Path) -> None:
    def ask(_: int) -> int:
        ensure_service(socket_path, SERVICE)
        return read_pid(socket_path)

    with ThreadPoolExecutor(4) as pool:
        pids = set(pool.map(ask, range(4)))
    assert len(pids) == 1
    pid = pids.pop()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert "listens on" in (socket_path.parent / "duovisord.log").read_text()


def test_it_comes_back_after_a_kill(socket_path: Path) -> None:
    ensure_service(socket_path, SERVICE)
    pid = read_pid(socket_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not can_connect(socket_path)
    ensure_service(socket_path, SERVICE)
    assert can_connect(socket_path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'error: no luck' >&2; exit 5", "duovisord did not start: no luck"),
        ("exit 5", "it ended with 5"),
        ("echo thinking; exec sleep 60", "not ready in time: thinking"),
    ],
)
def test_its_last_words(socket_path: Path, script: str, said: str) -> None:
    with pytest.raises(ServiceStartError, match=said) as caught:
        ensure_service(socket_path, ("sh", "-c", script), timeout_s=0.5)
    assert "duovisord.log" in caught.value.remedy


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceStartError, match=r"Not a directory|File exists"):
        ensure_service(tmp_path / "file/duovisord.sock", SERVICE)


def test_folders_are_named_absolutely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    environment = build_environment({"DUOVISOR_STATE_DIR": "here", "X": "y"}, "@n")
    assert environment == {"DUOVISOR_STATE_DIR": f"{tmp_path}/here", "X": "y", "NOTIFY_SOCKET": "@n"}
