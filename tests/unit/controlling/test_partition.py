"""Driver partitions and network helpers: their command lines, and Python really started in a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import pytest

from duovisor import process
from duovisor.controlling import python_runtime
from duovisor.controlling.disk_files import OpenDisk
from duovisor.controlling.errors import HostLacksError, PartitionError
from duovisor.controlling.network_helper import build_passt_argv, start_network_helper
from duovisor.controlling.partition import (
    POLL_US,
    PartitionEnvironment,
    build_partition_sandbox,
    build_storage_argv,
    start_storage_partition,
)
from duovisor.controlling.python_runtime import SANDBOX_PACKAGE, find_python_files, interpreter
from duovisor.hardware.sandboxing import probe_sandbox
from duovisor.sandbox import SandboxTools, build_sandbox_argv, uid_of
from duovisor.spec.vm import DiskSpec, NicSpec

BWRAP = shutil.which("bwrap")
PROBE = probe_sandbox(Path(BWRAP) if BWRAP else None, Path("/"))
SETPRIV = Path(shutil.which("setpriv") or "/usr/bin/setpriv")
TOOLS = SandboxTools(Path(BWRAP or "/usr/bin/bwrap"), SETPRIV, as_root=os.geteuid() == 0)


def build_environment(folder: Path) -> PartitionEnvironment:
    programs = (SETPRIV,) if TOOLS.as_root else ()
    return PartitionEnvironment(
        vm_name="vm", run_dir=folder, tools=TOOLS, python_files=find_python_files(folder / "cache", programs)
    )


def test_storage_driver_command_line() -> None:
    plain = build_storage_argv(DiskSpec(path="/a"), 5, 6)
    assert plain[0] == str(interpreter())
    assert plain[-10:-4] == ("--channel-fd", "5", "--image-fd", "6", "--poll-us", str(POLL_US))
    assert plain[-4:] == ("--queues", "1", "--queue-size", "256")
    full = DiskSpec.model_validate(
        {"path": "/a", "read_only": True, "cache": "none", "serial": "s", "queues": 4, "queue_size": 64}
    )
    argv = build_storage_argv(full, 5, 6)
    assert argv[-8:] == ("--queues", "4", "--queue-size", "64", "--serial", "s", "--read-only", "--direct")
    assert "/a" not in argv  # a partition knows no path


def test_a_partition_is_given_python_and_nothing_else(tmp_path: Path) -> None:
    environment = build_environment(tmp_path)
    sandbox = build_partition_sandbox(environment)
    assert sandbox.uid == uid_of("vm")
    assert (sandbox.writable, sandbox.devices, sandbox.gids) == ((), (), ())
    assert ("PYTHONPATH", SANDBOX_PACKAGE) in sandbox.environment
    sources = {path for path, _ in sandbox.read_only}
    assert interpreter() in sources
    assert not any(source == Path("/") or source == Path("/usr") for source in sources)
    targets = {target for _, target in sandbox.read_only}
    assert f"{SANDBOX_PACKAGE}/duovisor/channel" in targets
    assert not any(target.startswith(f"{SANDBOX_PACKAGE}/duovisor/cli") for target in targets)


@pytest.mark.skipif(not PROBE.works, reason=PROBE.reason)
def test_the_driver_can_be_imported_in_its_sandbox(tmp_path: Path) -> None:
    script = (
        "import duovisor.controlling.drivers.block, os, sys; print(os.getuid(), sorted(os.listdir('/')), "
        "'pydantic' in sys.modules)"
    )
    sandbox = build_partition_sandbox(build_environment(tmp_path))
    said = process.run(
        build_sandbox_argv(sandbox, TOOLS, (str(interpreter()), "-S", "-s", "-B", "-c", script)), timeout_s=30
    )
    uid = sandbox.uid if TOOLS.as_root else 65534
    assert said.startswith(f"{uid} [")
    assert said.endswith("] False\n")
    assert not {"home", "proc", "tmp", "etc"} & set(said.split("'"))


@pytest.mark.skipif(not PROBE.works, reason=PROBE.reason)
def test_a_driver_without_its_peer_says_so_and_ends() -> None:
    """Started for real on a channel whose other end is closed at once: it ends by itself."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        folder = Path(name)
        image = folder / "disk.raw"
        image.write_bytes(bytes(1 << 20))
        descriptor = os.open(image, os.O_RDWR)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "disk0.sock"))
            listener.listen()
            driver = start_storage_partition(
                build_environment(folder),
                "disk0",
                DiskSpec(path=str(image)),
                OpenDisk(descriptor, 1 << 20, False),
            )
            os.close(descriptor)
            connection, _ = listener.accept()
            connection.close()
        deadline = time.monotonic() + 10
        while driver.returncode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = driver.returncode is not None
        driver.kill_now()
        assert ended, driver.last_words()


def test_nobody_on_the_channel(tmp_path: Path) -> None:
    opened = OpenDisk(0, 512, False)
    with pytest.raises(PartitionError, match="channel disk0 of vm refuses: "):
        start_storage_partition(build_environment(tmp_path), "disk0", DiskSpec(path="/a"), opened)
    with pytest.raises(PartitionError, match="channel nic0 refuses: "):
        start_network_helper(Path("/usr/bin/passt"), tmp_path, "nic0", NicSpec())


def test_python_files_are_cached_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_python_files(tmp_path)
    assert all(path.exists() for path, _ in first)

    def refuse(programs: object) -> tuple[tuple[Path, str], ...]:
        raise AssertionError("asked again")

    monkeypatch.setattr(python_runtime, "_ask", refuse)
    assert find_python_files(tmp_path) == first
    with pytest.raises(AssertionError):
        find_python_files(tmp_path, (Path("/bin/sh"),))
    cache = tmp_path / "python-runtime.json"
    for broken in ("", "[]", "{", json.dumps({"key": json.loads(cache.read_text())["key"], "files": 5})):
        cache.write_text(broken)
        with pytest.raises(AssertionError):
            find_python_files(tmp_path)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_python_files(tmp_path / "file/cache") == find_python_files(tmp_path)


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
        start_network_helper(None, tmp_path, "nic0", NicSpec())
    assert caught.value.remedy == "apt-get install passt, or use the monolithic design"
