"""A VM's scope: the command line, and starting it with a systemd that is a shell script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from duovisor.controlling.resources.group_folder import MOUNT
from duovisor.controlling.resources.limits import GroupLimits
from duovisor.controlling.resources.scope import ScopeError, build_scope_argv, start_scope

LIMITS = GroupLimits(memory_mib=2816, processes=1280)


def write_systemd_run(folder: Path, script: str) -> Path:
    """A program that does what ``script`` says and becomes what stands after ``--``."""
    program = folder / "systemd-run"
    program.write_text(f'#!/bin/sh\n{script}\nwhile [ "$1" != -- ]; do shift; done\nshift; exec "$@"\n')
    program.chmod(0o755)
    return program


def test_the_scope_has_the_limits_and_is_left_to_us() -> None:
    argv = build_scope_argv(Path("/usr/bin/systemd-run"), "web.1", LIMITS, as_root=True)
    options = argv[: argv.index("--")]
    assert {"--scope", "--collect", "--property=Delegate=yes", "--slice=duovisor.slice"} <= set(options)
    assert {"--property=MemoryMax=2816M", "--property=TasksMax=1280"} <= set(options)
    assert "--user" not in options
    assert "--user" in build_scope_argv(Path("/usr/bin/systemd-run"), "web.1", LIMITS, as_root=False)


def test_a_scope_is_never_named_twice() -> None:
    names = {build_scope_argv(Path("systemd-run"), "vm", LIMITS, as_root=True)[4] for _ in range(100)}
    assert len(names) == 100


async def test_the_folder_is_read_from_the_process_that_holds_the_scope(tmp_path: Path) -> None:
    enter = f"mkdir {tmp_path}/$$; echo 0::/duovisor.slice/duovisor-vm-1f.scope >{tmp_path}/$$/cgroup"
    program = write_systemd_run(tmp_path, f"sleep 0.05; {enter}")
    argv = build_scope_argv(program, "vm", LIMITS, as_root=True)
    holder, folder = await start_scope(argv, tmp_path / "log", tmp_path)
    assert folder == MOUNT / "duovisor.slice/duovisor-vm-1f.scope"
    assert not holder.has_ended
    await holder.kill()


async def test_why_there_is_no_scope_is_told_in_systemd_s_words(tmp_path: Path) -> None:
    program = write_systemd_run(tmp_path, "echo Failed to start transient scope unit: Refused >&2; exit 1")
    with pytest.raises(ScopeError, match="transient scope unit: Refused"):
        await start_scope(build_scope_argv(program, "vm", LIMITS, as_root=True), tmp_path / "log")


async def test_a_systemd_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duovisor.controlling.resources.scope.SCOPE_TIMEOUT_S", 0.1)
    program = write_systemd_run(tmp_path, f"echo $$ >{tmp_path}/pid")
    with pytest.raises(ScopeError, match=r"no scope within 0\.1 s"):
        await start_scope(build_scope_argv(program, "vm", LIMITS, as_root=True), tmp_path / "log")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
