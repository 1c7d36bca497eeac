"""What a user can get wrong, on the real host: one clear line, the table's exit code, and nothing left.

No guest is booted: a small raw disk without anything to boot from is enough for a VM to start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.networks import BRIDGE, enter_network, list_ports, why_no_namespace
from tests.unit.hardware.fake_qemu import as_output, build_answers, write_script
from tests.vm.conftest import find_processes

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.partitions.factory import WAITING_TITLE
from duovisor.hardware.kvm import KvmState
from duovisor.spec.vm import DiskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.hardware.capabilities import HostCapabilities

pytestmark = pytest.mark.vm

DESIGNS = ("monolithic", "microkernelized")
OF_THE_SERVICE = ("vms", "duovisord.sock", "duovisord.log", "duovisord.start.lock")
WRONG, NOT_FOUND, IN_USE, HOST_CANNOT, FAILED = 2, 3, 4, 5, 6
START_TIMEOUT_S = 180.0
STRANGER = 54321

both_designs = pytest.mark.parametrize("design", DESIGNS)


class Outcome(NamedTuple):
    """What a command came to."""

    exit_code: int
    output: str
    errors: str


class Host:
    """This host as one user sees it: ``duovisor`` with folders of its own, and what lies in them."""

    def __init__(self, root: Path, user: int | None = None, python: str = sys.executable) -> None:
        self.root = root
        self.user = user
        self.python = python
        self.environment = {
            **os.environ,
            "HOME": str(root),
            "PYTHONPATH": ":".join(path for path in sys.path if path.endswith(("site-packages", "/src"))),
            **{f"DUOVISOR_{name.upper()}_DIR": str(root / name) for name in ("state", "runtime", "cache")},
        }

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start ``duovisor`` in the background."""
        return subprocess.Popen(
            [self.python, "-m", "duovisor", *map(str, arguments)],
            env=self.environment, cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            user=self.user, group=self.user, extra_groups=None if self.user is None else [],
        )  # fmt: skip

    def run(self, *arguments: str | Path) -> Outcome:
        """Run ``duovisor`` to its end."""
        program = self.start(*arguments)
        output, errors = program.communicate(timeout=START_TIMEOUT_S)
        return Outcome(program.returncode, output, errors)

    def stop_service(self) -> None:
        """End the service that the first command has started; the next one starts another."""
        outcome = self.run("service", "stop")
        assert outcome.exit_code == 0, outcome

    def find_left(self) -> list[str]:
        """Files in the runtime folder, mounts and processes that belong to this test's VMs."""
        left = [str(path) for path in (self.root / "runtime").rglob("*") if path.name not in OF_THE_SERVICE]
        mounts = Path("/proc/mounts").read_text().splitlines()
        left += [line for line in mounts if f" {self.root}/" in line]
        if self.user:
            folder = f"duovisor-{self.user}-{zlib.crc32(bytes(self.root / 'runtime')):08x}"
            left += [str(path) for path in Path("/dev/shm").glob(folder)]
        # what driver partitions are forked from stays with the service, and those that are nobody's yet
        ours = ("drivers.factory", WAITING_TITLE)
        return left + [each for each in find_processes(self.root) if not any(words in each for words in ours)]

    def refuse(self, *arguments: str | Path, exit_code: int) -> str:
        """Run a command that must fail with this code and one line of error; nothing may be left."""
        before = self.find_left()
        outcome = self.run("run", *arguments)
        assert outcome.exit_code == exit_code, outcome
        assert outcome.output == ""
        lines = outcome.errors.splitlines()
        assert lines[0].startswith("error: ")
        assert [line[:7] for line in lines[1:]] in ([], ["  try: "]), outcome.errors
        assert self.find_left() == before
        return outcome.errors

    @contextmanager
    def running(self, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A VM that runs in the foreground of another process, ended by two signals."""
        program = self.start("run", *arguments)
        try:
            wait_for_line(program, "Ctrl-] ends it")
            yield program
        finally:
            for _ in range(2):  # the power button, and as nothing listens to it, the plug
                if program.poll() is None:
                    program.send_signal(signal.SIGTERM)
                    time.sleep(0.2)
            errors = program.communicate(timeout=START_TIMEOUT_S)[1]
        assert self.find_left() == [], errors


def wait_for_line(program: subprocess.Popen[str], part: str) -> None:
    """Wait until the program says something on standard error that holds ``part``."""
    assert program.stderr is not None
    seen = []
    while line := program.stderr.readline():
        seen.append(line)
        if part in line:
            return
    raise AssertionError(f"ended without {part!r}: {seen}")


@pytest.fixture
def host(capabilities: HostCapabilities) -> Iterator[Host]:
    """Short paths: a Unix socket's may have 107 bytes."""
    root = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    yield (made := Host(root))
    made.stop_service()
    left = made.find_left()
    shutil.rmtree(root)
    assert left == []


@pytest.fixture
def image(host: Host) -> Path:
    path = host.root / "disk.raw"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


@both_designs
def test_unknown_field(host: Host, design: str) -> None:
    spec = host.root / "vm.toml"
    spec.write_text(f'name = "vm"\ndesign = "{design}"\nmemroy = "1G"\n')
    assert host.refuse(spec, exit_code=WRONG) == "error: unknown field 'memroy'\n"


@both_designs
def test_memory_larger_than_the_host(host: Host, design: str, capabilities: HostCapabilities) -> None:
    said = host.refuse("--memory", "15T", "--design", design, exit_code=HOST_CANNOT)
    there = capabilities.memory_total_mib
    assert f"vm asks for 15728640 MiB of memory; this host has {there} MiB" in said
    assert f"memory_mib must be below {there}" in said


@both_designs
def test_images_that_are_none(host: Host, image: Path, design: str) -> None:
    def refuse(path: Path) -> str:
        return host.refuse("--disk", path, "--design", design, exit_code=WRONG)

    missing = host.root / "missing.raw"
    assert f"disk image {missing} does not exist\n  try: qemu-img create -f raw {missing} 10G" in refuse(
        missing
    )
    assert f"disk image {host.root} is a directory\n  try: name a file in it" in refuse(host.root)
    os.truncate(image, 1000)
    said = refuse(image)
    assert f"disk image {image} has 1000 bytes, which is no multiple of 512" in said
    assert f"try: truncate -s %512 {image} rounds it up" in said
    os.truncate(image, 0)
    assert f"disk image {image} is empty" in refuse(image)


@both_designs
def test_an_image_locked_by_a_disk_tool(host: Host, image: Path, design: str) -> None:
    tool = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert tool.stdin is not None
    assert tool.stdout is not None
    tool.stdin.write("length\n")
    tool.stdin.flush()
    tool.stdout.readline()
    try:
        assert f"{image} is in use by another VM or disk tool" in refuse_locked(host, image, design)
    finally:
        tool.communicate("quit\n", timeout=120)


@both_designs
def test_an_image_locked_by_our_own(host: Host, image: Path, design: str) -> None:
    with open_disk(DiskSpec(path=str(image))):
        refuse_locked(host, image, design)


def refuse_locked(host: Host, image: Path, design: str) -> str:
    """Another user is an error that ``find_left`` must not count: it names the image in its command line."""
    outcome = host.run("run", "--disk", image, "--design", design)
    assert outcome.exit_code == IN_USE, outcome
    assert "  try: stop the other user" in outcome.errors
    assert {path.name for path in (host.root / "runtime").rglob("*")} <= set(OF_THE_SERVICE)
    return outcome.errors


@pytest.mark.parametrize(("first", "second"), [DESIGNS, DESIGNS[::-1]])
def test_an_image_and_a_name_in_use_by_a_running_vm(host: Host, image: Path, first: str, second: str) -> None:
    with host.running("--disk", image, "--name", "one", "--design", first):
        wait_spare(host, 2 if first == "microkernelized" else 0)
        said = host.refuse("--disk", image, "--name", "two", "--design", second, exit_code=IN_USE)
        assert f"{image} is in use by another VM or disk tool" in said
        said = host.refuse("--name", "one", "--design", second, exit_code=IN_USE)
        assert "there is a VM named 'one' already\n  try: choose another name" in said
        names = re.findall(r"^(\S+)  \S+ design$", host.run("anatomy").output, re.MULTILINE)
        assert names == ["one"]


@pytest.mark.parametrize("name", ["a/b", "../up", "a" * 300, "", ".."])
def test_bad_names(host: Host, name: str) -> None:
    said = host.refuse("--name", name, exit_code=WRONG)
    assert "error: name: " in said
    if len(name) == 300:
        assert "the name is 300 characters long; 63 is the most" in said


def test_boot_files(host: Host) -> None:
    said = host.refuse("--kernel", host.root, exit_code=WRONG)
    assert f"kernel {host.root} is no readable file\n  try: correct kernel.path" in said


def test_a_runtime_folder_with_a_long_name(host: Host) -> None:
    host.environment["DUOVISOR_RUNTIME_DIR"] = str(host.root / ("x" * 100))
    said = host.refuse("--name", "vm", exit_code=FAILED)
    assert "AF_UNIX path too long\n  try: set a shorter DUOVISOR_RUNTIME_DIR" in said
    assert list(host.root.rglob("vm*")) == []
    host.environment["DUOVISOR_RUNTIME_DIR"] = str(host.root / "runtime")


def test_qemu_that_is_missing(host: Host) -> None:
    host.environment["DUOVISOR_QEMU"] = str(host.root / "no-qemu")
    said = host.refuse(exit_code=HOST_CANNOT)
    assert f"{host.root}/no-qemu: No such file or directory" in said
    host.stop_service()
    host.environment["DUOVISOR_QEMU"] = "no-such-qemu"
    assert "no-such-qemu is not in PATH\n  try: apt" in host.refuse(exit_code=HOST_CANNOT)


def test_qemu_that_dies_whatever_it_is_asked(host: Host) -> None:
    program = write_script(host.root / "qemu", "echo 'symbol lookup error: libmoon.so' >&2; exit 127")
    host.environment["DUOVISOR_QEMU"] = str(program)
    assert "symbol lookup error: libmoon.so" in host.refuse(exit_code=HOST_CANNOT)


def write_qemu(host: Host, at_start: str) -> None:
    """A QEMU that answers the probe as the real one does and at a start runs a script."""
    (host.root / "bin").mkdir()
    (host.root / "bin/answers").write_text(as_output(build_answers()))
    script = f'case " $* " in *" -S "*) {at_start};; esac; cat > /dev/null; cat {host.root}/bin/answers'
    host.environment["DUOVISOR_QEMU"] = str(write_script(host.root / "bin/qemu", script))


@both_designs
def test_qemu_that_dies_at_the_start(host: Host, design: str) -> None:
    host.root.chmod(0o755)
    kernel = host.root / "kernel"
    kernel.write_bytes(b"no kernel at all" * 1024)
    kernel.chmod(0o644)
    said = host.refuse("--design", design, "--kernel", kernel, exit_code=FAILED)
    assert "error: vm: " in said
    assert "exited with 1: " in said
    assert "kernel" in said


def test_a_signal_during_the_start_leaves_nothing(host: Host) -> None:
    """With a shell for a VMM, which the sandbox of the microkernelized one has not."""
    host.root.chmod(0o755)
    write_qemu(host, f"echo begun > {host.root}/begun; exec sleep 600")
    program = host.start("run", "--design", "monolithic")
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (host.root / "runtime/vms/vm/1/qmp.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    program.send_signal(signal.SIGTERM)
    assert program.communicate(timeout=START_TIMEOUT_S) == ("", "interrupted\n")
    assert program.returncode == 130
    assert host.find_left() == []


def test_kvm_where_there_is_none(host: Host, capabilities: HostCapabilities) -> None:
    if capabilities.kvm.state is KvmState.WORKS:
        pytest.skip("KVM works on this host")
    said = host.refuse("--accelerator", "kvm", exit_code=HOST_CANNOT)
    reason = capabilities.kvm.reason.split(":")[0]  # what follows may be a measured time
    assert f"accelerator kvm does not work here: {reason}" in said
    assert "try: accelerator auto or tcg" in said


def test_a_killed_driver_is_succeeded_and_everybody_can_see_it(host: Host, image: Path) -> None:
    with host.running("--disk", image, "--design", "microkernelized"):
        for deaths in (1, 2):
            (driver,) = [each for each in list_drivers(host) if each["duty"] == "active"]
            os.kill(driver["pid"], signal.SIGKILL)
            deadline = time.monotonic() + START_TIMEOUT_S
            while [each["deaths"] for each in list_drivers(host)] != [deaths, deaths]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        told = host.run("event", "list").output
        assert "driver-died" in told
        assert "was killed by SIGKILL" in told
        assert "the spare took over after" in told
        replaced = host.run("driver", "restart", "vm", "disk0").output
        assert re.fullmatch(r"vm disk0: pid \d+ → \d+, same code, paused [\d.]+ ms\n", replaced)


def wait_spare(host: Host, drivers: int) -> None:
    """Wait until a VM that has just begun to run has this many of them: the spare comes last."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(list_drivers(host)) != drivers:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def list_drivers(host: Host) -> list[dict[str, Any]]:
    """What ``driver list`` knows, the driver that serves and its spare."""
    found: list[dict[str, Any]] = json.loads(host.run("driver", "list", "--json").output)
    return found


@pytest.fixture
def stranger(host: Host) -> Host:
    """The same host for an unprivileged user, who owns the test's folder and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; an unprivileged run of all tests covers it")
    python = find_open_python()
    if python is None:
        pytest.skip("no Python with the packages that this test runs on is open to other users")
    os.chown(host.root, STRANGER, STRANGER)
    return Host(host.root, STRANGER, python)


def find_open_python() -> str | None:
    """This Python, or the system's of the same version, if any user can start it and read its packages."""
    packages = [Path(path) for path in sys.path if path.endswith(("site-packages", "/src"))]
    if not all(map(is_open_to_all, packages)):
        return None
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if Path(python).exists() and is_open_to_all(Path(python)):
            return python
    return None


def is_open_to_all(path: Path) -> bool:
    """Whether any user can come to the file, and to the one it links to."""
    folders = {each for start in (path, path.resolve()) for each in (start, *start.parents)}
    return all(each.stat().st_mode & 0o001 for each in folders)


@both_designs
def test_no_root(stranger: Host, image: Path, design: str) -> None:
    """It works, or the one line says what this user lacks."""
    os.chown(image, STRANGER, STRANGER)
    check = stranger.run("host", "check", "--json")
    if f'"{design}"' in check.output and '"verdict": "no"' not in check.output.split(f'"{design}"')[1]:
        with stranger.running("--disk", image, "--design", design, "--accelerator", "tcg"):
            assert f"image {image} (read-write)" in stranger.run("anatomy").output.replace("\n", "")
    else:
        said = stranger.refuse("--disk", image, "--design", design, exit_code=HOST_CANNOT)
        assert "  try: " in said


def test_no_root_and_no_permission(stranger: Host, image: Path) -> None:
    image.chmod(0o400)
    said = stranger.refuse("--disk", image, exit_code=WRONG)
    assert f"cannot open disk image {image} for writing: Permission denied\n  try: make it read_only" in said
    stranger.environment["DUOVISOR_RUNTIME_DIR"] = "/run/duovisor-forbidden"
    said = stranger.refuse(exit_code=FAILED)
    assert "cannot start duovisord: /run/duovisor-forbidden: Permission denied" in said
    assert "try: set DUOVISOR_RUNTIME_DIR" in said


@both_designs
def test_no_root_and_no_right_to_make_taps(stranger: Host, design: str) -> None:
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network():
        said = stranger.refuse("--nic", f"bridge={BRIDGE}", "--design", design, exit_code=HOST_CANNOT)
        assert "a bridged network card needs the right to make TAPs (CAP_NET_ADMIN)\n  try: let" in said
        assert list_ports() == []
