"""The nouns of the API through the real program and the real service, over a fake VM manager."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.running import start_service
from tests.style.source_tree import ROOT
from tests.style.test_start_up import read_children_s
from tests.unit.cli.conftest import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.running import RunningService

LIST_LIMIT_S = 0.300
TLS = ROOT / "tests/api/tls"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("https")
    shutil.copy(TLS / "key.pem", folder)
    (folder / "key.pem").chmod(0o600)
    config = (
        f'[https]\naddress = "127.0.0.1"\nport = 0\n'
        f'certificate = "{TLS / "certificate.pem"}"\nkey = "{folder / "key.pem"}"\n'
    )
    with start_service(config) as running:
        yield running


@pytest.fixture
def user(service: RunningService) -> Program:
    program = Program(service.folder)
    program.environment = {
        key: value for key, value in service.environment.items() if key.startswith("DUOVISOR_")
    }
    return program


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"vm-{abs(hash(request.node.nodeid)) % 10**8}"


def read(user: Program, *arguments: str) -> Any:
    outcome = user.run(*arguments, "--json")
    assert outcome.exit_code == 0, outcome
    assert outcome.errors == ""
    return json.loads(outcome.output)


def say(user: Program, *arguments: str) -> str:
    outcome = user.run(*arguments)
    assert outcome.exit_code == 0, outcome
    return outcome.output


def test_the_life_of_a_vm(user: Program, name: str) -> None:
    assert say(user, "vm", "create", "--name", name, "--memory", "1G") == (
        f"{name} is defined; start it with: duovisor vm start {name}\n"
    )
    assert name in say(user, "vm", "list", "--state", "defined")
    assert name not in say(user, "vm", "list", "--state", "running")
    for action, said, state in (
        ("start", "runs", "running"),
        ("pause", "is paused", "paused"),
        ("resume", "runs on", "running"),
        ("reset", "was reset", "running"),
        ("shutdown", "is shut down", "stopped"),
        ("start", "runs", "running"),
        ("stop", "is off", "stopped"),
    ):
        assert say(user, "vm", action, name) == f"{name} {said}\n"
        assert read(user, "vm", "show", name)["status"]["state"] == state
    assert say(user, "vm", "rename", name, f"{name}-2") == f"{name} is called {name}-2 now\n"
    assert say(user, "vm", "log", f"{name}-2").startswith(name[:2])
    assert say(user, "vm", "delete", f"{name}-2") == f"{name}-2 is deleted; its disks stay\n"
    assert "there is no VM" in user.refuse("vm", "show", name, exit_code=3)


def test_switch_and_update_vmm(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    assert say(user, "vm", "switch", name, "--design", "microkernelized") == (
        f"{name} is microkernelized at its next start\n"
    )
    assert "cannot update the VMM of" in user.refuse("vm", "update-vmm", name, exit_code=4)
    say(user, "vm", "start", name)
    assert say(user, "vm", "switch", name, "--design", "monolithic") == (
        f"{name} is monolithic now: paused 18.2 ms, 412 KiB moved, 0.3 s in all\n"
    )
    assert f"{name} is monolithic already" in user.refuse(
        "vm", "switch", name, "--design", "monolithic", exit_code=4
    )
    assert say(user, "vm", "update-vmm", name) == (
        f"{name} has a new VMM, QEMU 7.2.22 → 10.0.3: paused 18.2 ms, 412 KiB moved, 0.3 s in all\n"
    )
    (switched,) = read(user, "vm", "switch", name, "--design", "microkernelized")
    assert switched["result"]["step_ms"] == {"start": 250.0, "pause": 1.5}
    say(user, "vm", "create", "--name", f"refusing-{name}")
    said = user.refuse("vm", "switch", f"refusing-{name}", "--design", "microkernelized", exit_code=6)
    assert "it runs on as it was" in said


def test_devices_come_and_go(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    disk = say(user, "vm", "attach-disk", name, "/srv/a.raw,serial=data,read_only")
    assert disk == f"{name} has changed: disk0 attached\n"
    say(user, "vm", "start", name)
    assert say(user, "vm", "attach-nic", name, "user") == f"{name} has changed: nic0 attached\n"
    (spec,) = [vm["record"]["spec"] for vm in read(user, "vm", "list") if vm["record"]["name"] == name]
    (made,) = spec["disks"]
    assert (made["path"], made["serial"], made["read_only"], made["slot"]) == ("/srv/a.raw", "data", True, 0)
    assert "two disks and one of them writes" in user.refuse(
        "vm", "attach-disk", name, "/srv/a.raw", exit_code=4
    )
    assert say(user, "vm", "detach-disk", name, "disk0") == f"{name} has changed: disk0 detached\n"
    assert "no disk or network card" in user.refuse("vm", "detach-nic", name, "nic3", exit_code=3)
    say(user, "vm", "attach-disk", name, "/srv/b.raw,iops_limit=9,bandwidth_limit=5M")
    limited = say(user, "vm", "limit-disk", name, "disk0", "--iops", "500", "--bandwidth", "50M")
    assert limited == f"disk0 of {name}: at most 500 requests and 50 MiB a second\n"
    assert say(user, "vm", "limit-disk", name, "disk0") == f"disk0 of {name}: no limit\n"
    assert say(user, "vm", "set-cpus", name, "3") == f"{name}: 3 processors\n"
    assert say(user, "vm", "set-memory", name, "2G") == f"{name}: 2 GiB\n"
    assert user.refuse("vm", "set-memory", name, "lots", exit_code=2)
    limits = ("--cpu-weight", "50", "--memory-limit", "3G")
    assert say(user, "vm", "set-limits", name, *limits) == f"{name}: weight 50, at most 3072 MiB of memory\n"
    assert say(user, "vm", "set-limits", name, "--memory-limit", "none") == f"{name}: weight 50\n"
    say(user, "vm", "attach-nic", name, "bridge=br0,out_limit=2M")
    limited = say(user, "vm", "limit-nic", name, "nic1", "--in", "50M", "--out", "500K")
    assert limited == f"nic1 of {name}: at most 50 MiB in and 500 KiB out a second\n"
    assert say(user, "vm", "limit-nic", name, "nic1") == f"nic1 of {name}: no limit\n"
    say(user, "vm", "pause", name)
    refused = user.refuse("vm", "detach-nic", name, "nic0", exit_code=4)
    assert f"cannot detach a NIC from {name}: it is paused" in refused
    assert f"duovisor vm resume {name}" in refused
    stubborn = f"stubborn-{name}"
    say(user, "vm", "create", "--name", stubborn, "--nic", "user")
    say(user, "vm", "start", stubborn)
    given = say(user, "vm", "set-memory", stubborn, "2G")
    assert given == f"{stubborn}: 2 GiB; its guest takes nothing\n"
    assert "its guest takes nothing" in say(user, "vm", "show", stubborn)
    said = user.refuse("vm", "detach-nic", stubborn, "nic0", "--timeout", "0.1", exit_code=7)
    assert "did not let go of nic0" in said


def test_json_and_no_wait(user: Program, name: str) -> None:
    assert read(user, "vm", "create", "--name", name)["record"]["name"] == name
    (started,) = read(user, "vm", "start", name)
    assert (started["action"], started["state"]) == ("vm.start", "done")
    identifier = say(user, "vm", "stop", name, "--no-wait").strip()
    assert say(user, "operation", "watch", identifier) == f"stop {name}: done\n"
    assert read(user, "operation", "show", identifier)["object"] == f"vm/{name}"
    assert identifier in say(user, "operation", "list")
    assert "is done already" in user.refuse("operation", "cancel", identifier, exit_code=4)


def test_what_is_refused_keeps_the_services_code_and_remedy(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    assert "choose another name" in user.refuse("vm", "create", "--name", name, exit_code=4)
    assert "cannot pause" in user.refuse("vm", "pause", name, exit_code=4)
    assert "cpus" in user.refuse("vm", "edit", name, "--set", "cpus=0", exit_code=2)
    assert "there is no image 'none'" in user.refuse("vm", "create", "--image", "none", exit_code=3)
    assert "there is no operation" in user.refuse("operation", "show", "0", exit_code=3)


def test_one_of_several_that_fails(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    outcome = user.run("vm", "start", "nobody", name)
    assert (outcome.exit_code, outcome.output) == (3, f"{name} runs\n")
    assert "there is no VM 'nobody'" in outcome.errors
    say(user, "vm", "create", "--name", f"refusing-{name}")
    outcome = user.run("vm", "start", f"refusing-{name}")
    assert (outcome.exit_code, outcome.output) == (6, "")
    assert "error: the VMM fell silent\n  try: read its log\n" in outcome.errors


def test_edit_and_autostart(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    assert say(user, "vm", "edit", name, "--set", "memory=1G", "--set", "cpus=2") == f"{name} is changed\n"
    spec = read(user, "vm", "show", name)["record"]["spec"]
    assert (spec["memory_mib"], spec["cpus"]) == (1024, 2)
    user.environment["EDITOR"] = "sed -i s/1024/2048/"
    user.environment["VISUAL"] = ""
    assert say(user, "vm", "edit", name) == f"{name} is changed\n"
    assert read(user, "vm", "show", name)["record"]["spec"]["memory_mib"] == 2048
    assert say(user, "vm", "edit", name) == f"{name} stays as it was\n"
    assert read(user, "vm", "autostart", name) == {"enabled": False, "order": 0, "delay_s": 0.0}
    assert "order 7, then 2.5 s" in say(user, "vm", "autostart", name, "--order", "7", "--delay", "2.5")
    assert "does not start" in say(user, "vm", "autostart", name, "--off")


def test_tokens_and_https(user: Program, service: RunningService, name: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    said = say(user, "token", "create", name, "--role", "viewer", "--days", "1", "--out", str(file))
    assert str(file) in said
    assert file.stat().st_mode & 0o777 == 0o600
    url = next(word for word in service.log.read_text().split() if word.startswith("https://"))
    remote = ("--host", url, "--token-file", str(file), "--certificate", str(TLS / "certificate.pem"))
    assert f"token:{name}, viewer" in say(user, *remote, "service", "status")
    assert "vm-" in say(user, *remote, "vm", "list") or "no VMs" in say(user, *remote, "vm", "list")
    assert "is viewer; this takes an operator" in user.refuse(*remote, "vm", "start", name, exit_code=8)
    assert "another host's service" in user.refuse(*remote, "service", "stop", exit_code=2)
    untrusted = user.refuse(*remote[:4], "vm", "list", exit_code=6)
    assert "--certificate FILE" in untrusted
    assert name in say(user, "token", "list")
    assert say(user, "token", "revoke", name) == f"token {name} is revoked\n"
    assert "unknown or has expired" in user.refuse(*remote, "vm", "list", exit_code=8)


def test_events(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    (event,) = read(user, "event", "list", "--object", f"vm/{name}")
    assert (event["action"], event["outcome"]) == ("vm.create", "done")
    watching = start(user, "event", "watch", "--json", "--object", f"vm/{name}", "--after", str(event["id"]))
    say(user, "vm", "start", name)
    assert watching.stdout is not None
    seen = [json.loads(watching.stdout.readline())["action"] for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 0
    assert sorted(seen) == ["vm.start", "vm.start", "vm.started"]
    watching.stdout.close()


def test_watch_shows_each_change(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    watching = start(user, "vm", "show", name, "--watch", "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["status"]["state"] == "defined"
    say(user, "vm", "start", name)
    while json.loads(watching.stdout.readline())["status"]["state"] != "running":
        pass
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 0
    watching.stdout.close()


def test_console_on_a_terminal(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name, "--start")
    ours, its = pty.openpty()
    program = start(user, "vm", "console", name, stdin=its, stdout=its)
    assert f"{name} login: " in read_until(ours, "login: ")
    os.write(ours, b"root\r")
    assert "ROOT" in read_until(ours, "ROOT")
    os.write(ours, b"\x1d")
    assert program.wait(60) == 0
    os.close(its)
    os.close(ours)
    assert read(user, "vm", "show", name)["status"]["state"] == "running"


def test_console_ends_with_the_vm(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name, "--start")
    program = start(user, "vm", "console", name)
    assert program.stdout is not None
    assert program.stdout.read(len(name)) == name
    say(user, "vm", "stop", name)
    assert program.wait(60) == 0
    program.stdout.close()


def test_run_is_a_throw_away_vm(user: Program, name: str) -> None:
    ours, its = pty.openpty()
    program = start(user, "run", "--name", name, stdin=its, stdout=its)
    read_until(ours, "login: ")
    assert name in say(user, "vm", "list", "--state", "running")
    os.write(ours, b"\x1d")
    assert program.wait(60) == 0
    os.close(its)
    os.close(ours)
    assert name not in say(user, "vm", "list")


def test_run_in_json_ends_with_a_signal(user: Program, name: str) -> None:
    program = start(user, "run", "--name", name, "--json")
    while name not in say(user, "vm", "list", "--state", "running"):
        time.sleep(0.05)
    time.sleep(1.5)  # before it has come to its conversation, a signal is an interrupted start
    program.send_signal(signal.SIGTERM)
    output, _ = program.communicate(timeout=120)
    summary = json.loads(output)
    assert program.returncode == 0
    assert (summary["name"], summary["state"], summary["accelerator"]) == (name, "stopped", "tcg")
    assert list(summary) == [
        "name", "design", "accelerator", "accelerator_reason", "state", "start_s", "ran_s",
    ]  # fmt: skip


def test_run_that_cannot_start_leaves_nothing(user: Program, name: str) -> None:
    assert "the VMM fell silent" in user.refuse("run", "--name", f"refusing-{name}", exit_code=6)
    assert name not in say(user, "vm", "list")


def test_completion_of_names(user: Program, name: str) -> None:
    say(user, "vm", "create", "--name", name)
    user.environment |= {
        "_DUOVISOR_COMPLETE": "bash_complete",
        "COMP_WORDS": f"duovisor vm start {name[:6]}",
        "COMP_CWORD": "3",
    }
    assert f"plain,{name}" in user.run().output.split()


def test_debug_shows_each_call(user: Program) -> None:
    outcome = user.run("--debug", "vm", "list")
    assert outcome.exit_code == 0
    method, path, status, took, unit = outcome.errors.split()
    assert (method, path, status, unit) == ("GET", "/v1/vms?limit=1000", "200", "ms")
    assert float(took) > 0


def test_service_status_and_drivers(user: Program, service: RunningService) -> None:
    assert service.process is not None
    found = read(user, "service", "status")
    assert (found["running"], found["pid"], found["role"]) == (True, service.process.pid, "administrator")
    assert read(user, "service", "start")["pid"] == service.process.pid
    assert "adopted: survivor" in say(user, "service", "status")
    assert all(driver["role"] for driver in read(user, "driver", "list"))


def test_a_service_that_is_not_there(duovisor: Program) -> None:
    outcome = duovisor.run("service", "status", "--json")
    assert (outcome.exit_code, json.loads(outcome.output)) == (3, {"running": False})
    assert say(duovisor, "service", "stop") == "duovisord does not run\n"
    url = f"unix://{duovisor.folder}/other.sock"
    assert "no service runs there" in duovisor.refuse("--host", url, "vm", "list", exit_code=6)
    assert not list(duovisor.folder.iterdir())


def test_vm_list_answers_within_300_ms(user: Program) -> None:
    """By its own processor time, and nothing is waited for: the machine may be busy with something else."""
    best_s, waited_s = 10.0, 10.0
    for _ in range(10):
        started, before = time.perf_counter(), read_children_s()
        say(user, "vm", "list")
        best_s = min(best_s, read_children_s() - before)
        waited_s = min(waited_s, time.perf_counter() - started)
        if best_s < LIST_LIMIT_S and waited_s < LIST_LIMIT_S:
            break
    assert best_s < LIST_LIMIT_S
    assert waited_s < 20 * LIST_LIMIT_S


def test_vm_list_imports_nothing_slow(user: Program) -> None:
    script = (
        "import sys; from duovisor.cli.main import cli; cli(['vm', 'list'], standalone_mode=False);"
        "print(sorted({'pydantic', 'rich', 'asyncio', 'httpx', 'yaml', 'fastapi'} & set(sys.modules)))"
    )
    environment = {**os.environ, **user.environment}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def start(user: Program, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    """The program in the background; its standard output is a pipe unless it is given another."""
    return subprocess.Popen(
        [sys.executable, "-m", "duovisor", *arguments],
        env={**os.environ, **user.environment},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, **streams},
        text=True,
    )


def read_until(terminal: int, part: str) -> str:
    seen = ""
    while part not in seen:
        assert select.select([terminal], [], [], 20)[0], seen
        seen += os.read(terminal, 4096).decode()
    return seen
