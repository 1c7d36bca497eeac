"""The sandbox: its command line, and what a program inside really sees."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from duovisor.hardware.sandboxing import probe_sandbox
from duovisor.sandbox import (
    NOBODY,
    SCRATCH_INODES,
    SCRATCH_KIB,
    UID_BASE,
    ResourceLimits,
    Sandbox,
    SandboxTools,
    build_sandbox_argv,
    find_scratch,
    uid_of,
)

ROOT = os.geteuid() == 0
BWRAP = shutil.which("bwrap")
TOOLS = SandboxTools(Path(BWRAP or "bwrap"), Path(shutil.which("setpriv") or "setpriv"), as_root=ROOT)
PROBE = probe_sandbox(Path(BWRAP) if BWRAP else None, Path("/"))
real = pytest.mark.skipif(not PROBE.works, reason=PROBE.reason)

USR = Sandbox(
    uid=uid_of("vm"),
    read_only=((Path("/usr"), "/usr"),),
    links=(("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/bin", "/bin")),
)


def run_inside(sandbox: Sandbox, script: str, pass_fds: tuple[int, ...] = ()) -> str:
    argv = build_sandbox_argv(sandbox, TOOLS, ("/bin/bash", "-c", script))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20, pass_fds=pass_fds)
    return done.stdout + done.stderr


def test_uids_are_stable_unassigned_and_differ() -> None:
    assert uid_of("web") == uid_of("web") == 1_976_121_426
    uids = {uid_of(f"vm{n}") for n in range(1000)}
    assert len(uids) == 1000
    assert all(UID_BASE <= uid < 0x80000000 for uid in uids)


def test_root_drops_to_the_uid_and_others_get_a_user_namespace() -> None:
    sandbox = replace(USR, gids=(104, 105), environment=(("A", "b c"),), devices=("/dev/kvm",))
    as_root = build_sandbox_argv(sandbox, replace(TOOLS, as_root=True), ("prog", "--arg"))
    as_user = build_sandbox_argv(sandbox, replace(TOOLS, as_root=False), ("prog", "--arg"))
    assert as_root[-2:] == as_user[-2:] == ("prog", "--arg")
    assert f"--reuid={sandbox.uid}" in as_root
    assert as_root[as_root.index("--groups") + 1] == "104,105"
    assert "--unshare-user" not in as_root
    assert "--unshare-user" in as_user
    assert as_user[as_user.index("--uid") + 1] == str(NOBODY)
    assert not any(argument.startswith("--reuid") for argument in as_user)
    for argv in (as_root, as_user):
        assert argv[argv.index("--setenv") + 1 : argv.index("--setenv") + 3] == ("A", "b c")
        for needed in ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--clearenv", "--as-pid-1"):
            assert needed in argv


def test_every_folder_above_a_bound_path_is_made() -> None:
    sandbox = replace(
        USR, read_only=((Path("/a"), "/deep/er/file"),), writable=((Path("/b"), "/deep/memory"),)
    )
    argv = build_sandbox_argv(sandbox, replace(TOOLS, as_root=False), ("prog",))
    made = [argv[index + 1] for index, argument in enumerate(argv) if argument == "--dir"]
    assert made == ["/deep", "/deep/er", "/dev"]


def test_tools_are_bound_only_where_nothing_else_brings_them() -> None:
    tools = SandboxTools(Path("/usr/bin/bwrap"), Path("/bin/setpriv"), as_root=True)
    limits = ResourceLimits(private_mib=64, threads=8, descriptors=32)
    bare = build_sandbox_argv(Sandbox(uid=7, limits=limits), tools, ("prog",))
    assert bare[bare.index("/usr/bin/setpriv") - 2 :][:3] == ("--ro-bind", "/bin/setpriv", "/usr/bin/setpriv")
    assert bare.index("/bin/prlimit", bare.index("--chdir")) < bare.index(
        "/bin/setpriv", bare.index("--chdir")
    )
    assert "/usr/bin/setpriv" not in build_sandbox_argv(replace(USR, limits=limits), tools, ("prog",))


@real
def test_inside_no_more_than_the_limits_can_be_used() -> None:
    limits = ResourceLimits(private_mib=64, threads=8, descriptors=32)
    # a uid that nobody else has: the kernel counts its threads wherever they run
    limited = replace(USR, uid=uid_of(f"limits-{os.getpid()}"), limits=limits)
    assert [line.split()[-1] for line in run_inside(limited, "ulimit -c -d -u -n").splitlines()] == [
        "0", str(64 << 10), "8", "32",
    ]  # fmt: skip
    assert "cannot modify limit: Operation not permitted" in run_inside(limited, "ulimit -n 64")
    assert "40: Bad file descriptor" in run_inside(limited, "exec 40</dev/null")


@real
def test_a_folder_the_host_lacks_is_left_out() -> None:
    said = run_inside(replace(USR, if_there=("/no/such/folder", "/etc/ssl")), "ls -d /no/such/* /etc/ssl")
    assert "/etc/ssl" in said.split()
    assert "No such file" in said


@real
def test_inside_is_unprivileged() -> None:
    said = run_inside(USR, "id -u; id -G; echo $$; ls /proc")
    uid = str(USR.uid if ROOT else NOBODY)
    assert said.splitlines()[:3] == [uid, uid, "1"]
    assert "'/proc': No such file" in said


@real
def test_inside_nothing_of_the_host_is_seen(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    said = run_inside(USR, f"cat {tmp_path}/secret; ls / /dev; hostname; env")
    assert "No such file" in said
    assert set(said.split()) & {"home", "root", "proc", "sys", "etc", "tmp", "var"} == set()
    assert "sandbox" in said
    assert "HOME=" not in said
    assert said.count("null") == 1


@real
def test_inside_nothing_can_be_written(tmp_path: Path) -> None:
    assert "Read-only file system" in run_inside(USR, "echo > /file")
    assert "Read-only file system" in run_inside(USR, "echo > /usr/file")
    given = tmp_path / "given"
    given.touch()
    given.chmod(0o666)
    tmp_path.chmod(0o755)
    sandbox = replace(USR, writable=((given, "/given"),))
    assert run_inside(sandbox, "echo words > /given; cat /given") == "words\n"
    assert given.read_text() == "words\n"


@real
def test_inside_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = run_inside(USR, f"echo > /dev/tcp/127.0.0.1/{port} && echo connected")
    assert "Connection refused" in said  # its loopback is not the host's
    assert "connected" not in said


@real
def test_inside_no_privilege_can_be_gained() -> None:
    said = run_inside(USR, "su -c id; unshare --mount true && echo gained; id -u")
    assert "uid=0" not in said
    assert "gained" not in said
    assert said.splitlines()[-1] != "0"


@real
def test_inside_inherited_descriptors_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("through the descriptor")
    descriptor = os.open(file, os.O_RDONLY)
    assert run_inside(USR, f"cat <&{descriptor}", (descriptor,)) == "through the descriptor"
    os.close(descriptor)


@real
@pytest.mark.skipif(not ROOT, reason="another user's program writes to the folder itself")
def test_a_scratch_folder_holds_next_to_nothing_and_ends_with_its_program(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "scratch"
    folder.mkdir(mode=0o700)
    script = (
        "cd /scratch; for n in {1..100}; do : >f$n || break; done; echo $n; rm f*;"
        "head -c 1M /dev/urandom >big; stat -c %s big; echo ready; read -r _"
    )
    argv = build_sandbox_argv(
        replace(USR, scratch=((folder, "/scratch"),)), TOOLS, ("/bin/bash", "-c", script)
    )
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None
        files, size, ready = (made.stdout.readline().strip() for _ in range(3))
        assert ready == "ready"
        assert (int(files), int(size)) == (SCRATCH_INODES, SCRATCH_KIB << 10)
        assert find_scratch(made.pid, folder / "big").stat().st_size == int(size)
        assert list(folder.iterdir()) == []  # the host's own folder, on the host's own file system
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        _, errors = made.communicate("\n", timeout=20)
    assert errors.count("No space left on device") == 2
    assert not find_scratch(made.pid, folder / "big").exists()


@real
@pytest.mark.skipif(not ROOT, reason="only root mounts")
def test_what_the_host_unmounts_is_not_kept_by_a_scratch_folder(tmp_path: Path) -> None:
    """Where mounts are shared, as systemd has them."""
    tmp_path.chmod(0o755)
    host = str(tmp_path)
    subprocess.run(["mount", "--bind", host, host], check=True)
    try:
        subprocess.run(["mount", "--make-shared", host], check=True)
        scratch, disk = tmp_path / "scratch", tmp_path / "disk"
        scratch.mkdir(mode=0o700)
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "duovisor-test", str(disk)], check=True)
        argv = build_sandbox_argv(
            replace(USR, scratch=((scratch, "/scratch"),)),
            TOOLS,
            ("/bin/bash", "-c", "echo ready; read -r _"),
        )
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
            assert made.stdout is not None
            assert made.stdout.readline() == "ready\n"
            mounts = Path(f"/proc/{made.pid}/mountinfo")
            assert str(disk) in mounts.read_text()
            subprocess.run(["umount", str(disk)], check=True)
            assert str(disk) not in mounts.read_text()
            made.communicate("\n", timeout=20)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", host], check=True)
