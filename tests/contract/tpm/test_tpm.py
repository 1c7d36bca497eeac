"""A TPM in its sandbox, asked over its control channel as a VMM asks it (tpm_ioctl.h)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import struct
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.hardware.recorded_hosts import XEON
from tests.unit.hardware.test_check import build_capabilities

from duovisor.controlling.errors import HostLacksError, PartitionError
from duovisor.controlling.tpm import (
    TpmEnvironment,
    build_tpm_argv,
    build_tpm_sandbox,
    find_tpm_environment,
    make_state_folder,
    start_tpm,
)
from duovisor.hardware.sandboxing import SandboxProbe, probe_sandbox
from duovisor.hypervisor.qemu.tpm import TPM_SOCKET
from duovisor.process_identity import read_children
from duovisor.sandbox import SandboxTools, uid_of
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.process import Process

ROOT = os.geteuid() == 0
PROGRAMS = [shutil.which(name) for name in ("swtpm", "bwrap", "setpriv")]
needs_swtpm = pytest.mark.skipif(None in PROGRAMS, reason="swtpm, bubblewrap or setpriv is not installed")
INIT, SHUTDOWN, SET_DATA_FD = 2, 3, 16
SPEC = build_spec({"name": "vm", "tpm": True})


class Channel:
    """A VMM's end of the control channel."""

    def __init__(self, run_dir: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(run_dir / f"{TPM_SOCKET}.sock"))
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._data: socket.socket | None = None

    def ask(self, command: int, *words: int) -> int:
        """The result of a control command, 0 for done."""
        peer = self._accept()
        peer.sendall(struct.pack(f">{1 + len(words)}I", command, *words))
        (result,) = struct.unpack(">I", peer.recv(4))
        return int(result)

    def give_data(self) -> int:
        """Give the TPM one end of the connection for its commands."""
        self._data, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._accept(), [struct.pack(">I", SET_DATA_FD)], [theirs.fileno()])
        (result,) = struct.unpack(">I", self._accept().recv(4))
        return int(result)

    def _accept(self) -> socket.socket:
        if self._peer is None:
            self._peer = self._listener.accept()[0]
            self._peer.settimeout(120)
        return self._peer

    def close(self) -> None:
        for each in (self._data, self._peer, self._listener):
            if each is not None:
                each.close()


@contextmanager
def running(run_dir: Path, number: int) -> Iterator[tuple[Process, Channel]]:
    swtpm, bwrap, setpriv = (Path(str(each)) for each in PROGRAMS)
    folder = run_dir / str(number)
    folder.mkdir()
    channel = Channel(folder)
    environment = TpmEnvironment(swtpm, SandboxTools(bwrap, setpriv, ROOT))
    started = start_tpm(environment, "vm", folder, run_dir / "kept")
    try:
        yield started, channel
    finally:
        channel.close()
        started.kill_now()


@pytest.fixture(scope="module")
def sandbox() -> None:
    probe = probe_sandbox(Path(str(PROGRAMS[1])), Path("/"))
    if not probe.works:
        pytest.skip(f"no sandbox: {probe.reason}")


@needs_swtpm
@pytest.mark.usefixtures("sandbox")
async def test_a_tpm_is_the_same_one_at_its_next_start_and_ends_with_its_vmm(run_dir: Path) -> None:
    state = run_dir / "kept/tpm/tpm2-00.permall"
    with running(run_dir, 1) as (started, channel):
        assert channel.give_data() == 0
        assert channel.ask(INIT, 0) == 0
        made = state.read_bytes()
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        (inside,) = read_children(started.pid)
        assert sorted(os.listdir(f"/proc/{inside}/root/")) == [
            "bin", "dev", "etc", "lib", "lib64", "sbin", "state", "usr",
        ]  # fmt: skip
        assert os.readlink(f"/proc/{inside}/ns/net") != os.readlink("/proc/self/ns/net")
        if ROOT:
            assert state.stat().st_uid == os.stat(f"/proc/{inside}").st_uid == uid_of("vm")
        channel.close()
        async with asyncio.timeout(120):
            await started.wait()
    with running(run_dir, 2) as (_, channel):
        assert channel.ask(INIT, 0) == 0
        assert state.read_bytes() == made  # not manufactured anew, with other seeds
        assert len(made) > 1024
        assert channel.ask(SHUTDOWN) == 0


async def test_a_tpm_whose_vmm_does_not_listen_is_refused(run_dir: Path) -> None:
    environment = TpmEnvironment(Path("/bin/swtpm"), SandboxTools(Path("/bin/b"), Path("/bin/s"), False))
    with pytest.raises(PartitionError, match="the TPM of vm cannot be started"):
        start_tpm(environment, "vm", run_dir, run_dir / "kept")


def test_what_a_tpm_sees() -> None:
    sandbox = build_tpm_sandbox(Path("/usr/bin/swtpm"), "vm", Path("/var/lib/duovisor/vms/u/tpm"))
    assert sandbox.writable == ((Path("/var/lib/duovisor/vms/u/tpm"), "/state"),)
    assert sandbox.uid == uid_of("vm")
    assert not sandbox.devices
    argv = build_tpm_argv(Path("/usr/bin/swtpm"), 7)
    assert argv[argv.index("--ctrl") + 1] == "type=unixio,clientfd=7"
    assert "--terminate" in argv


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_the_state_of_a_renamed_vm_is_its_new_uid_s(tmp_path: Path) -> None:
    folder = make_state_folder(tmp_path, 70001)
    (folder / "tpm2-00.permall").touch()
    (folder / "link").symlink_to("/etc/passwd")
    before = os.stat("/etc/passwd").st_uid
    make_state_folder(tmp_path, 70002)
    owners = {path.name: path.lstat().st_uid for path in (folder, *folder.iterdir())}
    assert owners == {"tpm": 70002, "tpm2-00.permall": 70002, "link": 70002}
    assert os.stat("/etc/passwd").st_uid == before


def test_what_is_missing_is_named() -> None:
    host = build_capabilities(XEON)
    assert find_tpm_environment(build_spec({"name": "vm"}), host) is None
    with pytest.raises(HostLacksError) as caught:
        find_tpm_environment(SPEC, host)
    assert (caught.value.message, caught.value.remedy) == (
        "tpm needs swtpm, which is not on this host",
        "apt-get install swtpm",
    )
    closed = replace(
        host,
        tools=replace(host.tools, swtpm=Path("/bin/swtpm")),
        sandbox=SandboxProbe(False, "namespaces are off", "run as root"),
    )
    with pytest.raises(HostLacksError, match="tpm needs a sandbox: namespaces are off"):
        find_tpm_environment(SPEC, closed)
