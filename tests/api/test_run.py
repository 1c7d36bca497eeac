"""One run of the service after another: kill, stop, a second one, bad configuration, what it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.api.document import ROOT
from tests.api.running import RunningService, read_events, start_service

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_LIMIT_MIB = 150  # issue: service memory


def try_start(service: RunningService, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a second service on the same folders."""
    return subprocess.run(
        [sys.executable, "-m", "tests.api.fake_service", *arguments],
        cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_after_a_kill_history_tokens_and_events_are_there() -> None:
    with start_service() as service:
        with service.connect() as api:
            api.make_vm("slow-a")
            token = api.post("/v1/tokens", json={"name": "t", "role": "viewer"}).json()["token"]
            accepted = api.post("/v1/vms/slow-a/start").json()
            with api.stream("GET", "/v1/events/stream", params={"after": 0}) as stream:
                assert any(event["operation"] == accepted["id"] for event in read_events(stream))
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
        service.start()
        with service.connect(token) as api:
            operation = api.get(f"/v1/operations/{accepted['id']}").json()
            assert (operation["state"], operation["error"]["code"]) == (
                "interrupted",
                "operation-interrupted",
            )
            events = api.get("/v1/events").json()["items"]
            assert [event["id"] for event in events] == list(range(1, len(events) + 1))
            assert (events[-1]["action"], events[-1]["message"]) == (
                "service.start",
                "1 VMs adopted, 1 operations interrupted",
            )
            assert api.get("/v1/service").json()["recovery"]["adopted"] == ["survivor"]


def test_a_stop_interrupts_operations_ends_streams_and_leaves_no_socket() -> None:
    with start_service() as service, service.connect() as api:
        api.make_vm("slow-a")
        accepted = api.post("/v1/vms/slow-a/start").json()
        with api.stream("GET", "/v1/events/stream") as stream:
            assert service.process is not None
            service.process.send_signal(signal.SIGTERM)
            outcomes = [(event["action"], event["outcome"]) for event in read_events(stream)]
        assert ("vm.start", "interrupted") in outcomes
        assert service.process.wait(timeout=20) == 0
        assert not service.socket.exists()
        service.start()
        with service.connect() as again:
            state = again.get(f"/v1/operations/{accepted['id']}").json()["state"]
            assert state == "interrupted"


def test_a_second_service_on_the_same_state_is_refused() -> None:
    with start_service() as service:
        second = try_start(service)
        assert second.returncode == 4
        assert "is in use by process" in second.stderr
        with service.connect() as api:
            assert api.get("/v1/health").status_code == 200


def test_a_socket_that_another_service_listens_on_is_left_alone(tmp_path: Path) -> None:
    with start_service() as service:
        other = RunningService(tmp_path)
        environment = {**other.environment, "DUOVISOR_RUNTIME_DIR": str(service.folder / "run")}
        done = subprocess.run(
            [sys.executable, "-m", "tests.api.fake_service"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 5
        assert "another service listens" in done.stderr
        with service.connect() as api:
            assert api.get("/v1/health").status_code == 200


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("nonsense = 1", "unknown field 'nonsense'"),
        ("[https", "is not TOML"),
        ('[https]\naddress = "here"\ncertificate = "c"\nkey = "k"', "is not an IP address"),
        ('[https]\naddress = "::1"\ncertificate = "/no"\nkey = "/no"', "cannot read the private key /no"),
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(tmp_path: Path, config: str, said: str) -> None:
    service = RunningService(tmp_path, config)
    done = try_start(service, "--config", str(service.config))
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert not service.socket.exists()


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    for name in ("c", "k"):
        (tmp_path / name).touch(mode=0o600)
    config = f'[https]\naddress = "127.0.0.1"\ncertificate = "{tmp_path}/c"\nkey = "{tmp_path}/k"'
    service = RunningService(tmp_path, config)
    done = try_start(service, "--config", str(service.config))
    assert done.returncode == 5
    assert "cannot use certificate" in done.stderr
    assert not service.socket.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_a_runtime_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    service = RunningService(tmp_path)
    service.socket.parent.mkdir()
    os.chown(service.socket.parent, 65534, 65534)
    done = try_start(service)
    assert done.returncode == 5
    assert "take the place of the service's socket" in done.stderr


def test_it_takes_little_memory(service: RunningService) -> None:
    assert service.process is not None
    with service.connect() as api:
        for path in ("/v1/vms", "/v1/host/check", "/metrics"):
            assert api.get(path).status_code == 200
    with open(f"/proc/{service.process.pid}/smaps_rollup") as rollup:
        pss_kib = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    assert pss_kib < MEMORY_LIMIT_MIB << 10


def test_the_numbers_for_prometheus(service: RunningService) -> None:
    with service.connect() as api:
        api.make_vm("counted")
        api.get("/v1/vms/nobody")
        text = api.get("/metrics").text
    assert 'duovisor_vms{state="defined"} 1\n' in text
    assert 'route="/v1/vms/{name}",status="404",le="+Inf"} 1\n' in text
    assert 'duovisor_process_resident_bytes{vm="",role="service",device=""}' in text
