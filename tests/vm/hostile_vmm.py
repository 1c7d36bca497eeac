"""The sandbox of a VMM with the attacker in QEMU's place, on a host full of things to take."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.controlling.preflight import find_libraries
from duovisor.hardware.qemu import find_qemu
from duovisor.hypervisor.build import build_vmm_sandbox
from duovisor.hypervisor.plan import VmmPaths
from duovisor.hypervisor.qemu.nics import SANDBOX_CHANNELS
from duovisor.hypervisor.vmm_files import create_channels_folder
from duovisor.sandbox import SandboxTools, build_sandbox_argv
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Accelerator

if TYPE_CHECKING:
    from duovisor.sandbox import Sandbox

ATTACKER = Path(__file__).with_name("attacker.py")
INSIDE = "/attacker.py"
INTERPRETER = Path("/usr/bin/python3").resolve()  # the system's: its libraries are where QEMU's are
OTHER_USER = 61999
TIMEOUT_S = 60.0
HOST_FILES = (
    "/etc/passwd",
    "/etc/shadow",
    "/proc/1/environ",
    "/sys/kernel",
    "/dev/kvm",
    "/dev/mem",
    "/root",
    "/home",
)
READ_ONLY = ("/usr/lib64", "/etc/ld.so.cache", "/usr/share/qemu")
Outcomes = dict[str, dict[str, Any]]


def attack(folder: Path, *, as_root: bool) -> Outcomes:
    """Let the attacker loose in the sandbox of a VMM that root, or another user, starts."""
    uid = os.geteuid() if as_root or os.geteuid() != 0 else OTHER_USER
    secret = folder / "image.raw"
    secret.write_bytes(b"another VM's disk")
    secret.chmod(0o666)  # what keeps the attacker from it is not its mode
    memory = folder / "memory"
    memory.write_bytes(bytes(1 << 20))
    attacker = folder / "attacker.py"
    shutil.copyfile(ATTACKER, attacker)
    channels = folder / "channels"
    sandbox = plan(memory, channels, attacker)
    owner = sandbox.uid if as_root else uid
    os.chown(memory, owner, owner)
    create_channels_folder(channels, owner)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        names = [str(folder / "listener.sock"), f"@duovisor-test-{os.getpid()}"]
        for name in names:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name.replace("@", "\0"))
            listener.listen()
        victim = stack.enter_context(subprocess.Popen(["sleep", "60"], user=uid))
        stack.callback(victim.kill)
        ways = {
            "files": [*HOST_FILES, str(secret), str(folder), "/memory/../../../etc/passwd"],
            "pids": [victim.pid, os.getpid(), 2],
            "ports": [server.getsockname()[1]],
            "unix": names,
            "read_only": READ_ONLY,
            "fill": SANDBOX_CHANNELS if as_root else "",
        }
        outcomes = run(sandbox, ways, as_root=as_root, uid=uid)
        assert victim.poll() is None
    assert secret.read_bytes() == b"another VM's disk"
    return outcomes


def plan(memory: Path, channels: Path, attacker: Path) -> Sandbox:
    """A VMM's own plan, and what the attacker's program needs of the host besides: Python."""
    name = f"hostile-{os.getpid()}"  # and so a uid whose threads are its own
    spec = build_spec({"name": name, "memory_mib": 64, "design": "microkernelized"})
    paths = VmmPaths(find_qemu(os.environ), memory, libraries=find_libraries(), channels=channels)
    sandbox = build_vmm_sandbox(spec, Accelerator.TCG, paths, ())
    python = [(path, str(path)) for path in (INTERPRETER, Path("/usr/lib") / INTERPRETER.name)]
    return replace(sandbox, read_only=(*sandbox.read_only, *python, (attacker, INSIDE)))


def run(sandbox: Sandbox, ways: dict[str, Any], *, as_root: bool, uid: int) -> Outcomes:
    tools = SandboxTools(find_program("bwrap"), find_program("setpriv"), as_root)
    argv = build_sandbox_argv(sandbox, tools, (str(INTERPRETER), "-I", "-S", "-B", INSIDE))
    done = subprocess.run(
        argv,
        input=json.dumps(ways),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        user=uid,
        group=uid if uid else None,
        extra_groups=[] if os.geteuid() == 0 else None,
    )
    assert done.returncode == 0, done.stderr
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


def find_program(name: str) -> Path:
    found = shutil.which(name)
    assert found, f"{name} is not installed"
    return Path(found)
