"""The format process in its sandbox: what it can see, what it refuses, how its end is survived."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.controlling.conftest import let_in, run_as_stranger

from duovisor.controlling.errors import DiskLockedError, HostLacksError, PartitionError
from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.formats.process import (
    FormatEnvironment,
    FormatProcess,
    adopt_format_process,
    build_format_argv,
    build_format_sandbox,
    create_disk_replay,
    find_storage_daemon,
    start_format_process,
)
from duovisor.controlling.preflight import find_libraries
from duovisor.hardware.sandboxing import probe_sandbox
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.sandbox import SandboxTools, uid_of
from duovisor.spec.vm import CacheMode, DiskFormat, DiskSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-storage-daemon", "qemu-img", "bwrap", "setpriv"))),
    reason="qemu-storage-daemon, qemu-img, bubblewrap or setpriv is not installed",
)
SIZE = 8 << 20


def make_environment(run_dir: Path) -> FormatEnvironment:
    tools = SandboxTools(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"), os.geteuid() == 0)
    program = shutil.which("qemu-storage-daemon")
    return FormatEnvironment(
        "vm1", run_dir, tools, find_storage_daemon(Path(program) if program else None), find_libraries()
    )


def make_disk(folder: Path, disk_format: str = "qcow2") -> DiskSpec:
    """An image on a raw one, where the format has that; nobody but the owner may read either."""
    folder.mkdir(mode=0o700, exist_ok=True)
    words = [str(folder / "top"), str(SIZE)]
    if disk_format == "qcow2":
        (folder / "base").write_bytes(b"base" * (SIZE // 4))
        (folder / "base").chmod(0o400)
        words = ["-b", "base", "-F", "raw", *words]
    subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, *words], check=True)
    (folder / "top").chmod(0o600)
    return DiskSpec(path=str(folder / "top"), format=DiskFormat(disk_format))


@asynccontextmanager
async def running(run_dir: Path, disk: DiskSpec, name: str = "disk0") -> AsyncIterator[FormatProcess]:
    started = start_format_process(make_environment(run_dir), name, disk, read_chain(disk.path, disk.format))
    try:
        yield started
    finally:
        await started.process.kill()
        started.remove()


@needs_tools
@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vhdx", "vdi"])
async def test_opens_what_only_its_owner_may_read(tmp_path: Path, disk_format: str) -> None:
    async with running(tmp_path, make_disk(tmp_path / "images", disk_format)) as started:
        assert await started.read_size() == SIZE
        assert await started.read_size() == SIZE
        adopted = adopt_format_process(started.process, tmp_path, "disk0")
        assert await adopted.read_size() == SIZE
    assert not started.path.exists()


@needs_tools
def test_as_an_ordinary_user(tmp_path: Path) -> None:
    let_in(tmp_path)
    tmp_path.chmod(0o777)

    async def look() -> None:
        async with running(tmp_path, make_disk(tmp_path / "images")) as started:
            assert await started.read_size() == SIZE

    def work() -> None:
        probe = probe_sandbox(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"))
        if probe.works:
            asyncio.run(look())

    run_as_stranger(work)


@needs_tools
async def test_sees_its_image_and_nothing_else(tmp_path: Path) -> None:
    async with running(tmp_path, make_disk(tmp_path / "images")) as started:
        await started.read_size()
        pid = started.process.program_pid()
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert status["Uid"].split() == [str(uid_of("vm1"))] * 4
            capabilities = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
            assert capabilities == {f"{1 << 1:016x}"}  # CAP_DAC_OVERRIDE
        root = Path(f"/proc/{pid}/root")
        assert {"image0", "image1", "usr"} <= set(os.listdir(root)) <= {
            "image0", "image1", "usr", "dev", "etc", "lib", "lib64", "bin", "sbin"
        }  # fmt: skip
        mounts = Path(f"/proc/{pid}/mounts").read_text().splitlines()
        options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
        assert "rw" in options["/image0"]
        assert all("ro" in options[place] for place in ("/", "/image1"))
        for kind in ("mnt", "pid", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


@needs_tools
async def test_two_never_have_the_same_image_open(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "images")
    async with running(tmp_path, disk) as first:
        await first.read_size()
        async with running(tmp_path, disk, "disk1") as second:
            with pytest.raises(PartitionError, match='image: Failed to get "write" lock'):
                await second.read_size()
    async with running(tmp_path, disk) as third:
        assert await third.read_size() == SIZE


@needs_tools
async def test_a_vhdx_in_use_is_not_mended(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "images", "vhdx")
    async with running(tmp_path, disk) as first:
        await first.read_size()
        with pytest.raises(DiskLockedError):
            start_format_process(
                make_environment(tmp_path), "disk1", disk, read_chain(disk.path, disk.format)
            )


@needs_tools
async def test_an_image_that_cannot_be_opened(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "images")
    with open(disk.path, "r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)  # the table of tables lies beyond all bounds
    async with running(tmp_path, disk) as started:
        with pytest.raises(PartitionError, match=r"the format process cannot open its image: .*L1 table"):
            await started.read_size()


@needs_tools
async def test_nobody_listens(tmp_path: Path) -> None:
    async with running(tmp_path, make_disk(tmp_path / "images")) as started:
        started.remove()
        with pytest.raises(PartitionError, match=r"of disk0\.format cannot be reached"):
            started.connect()


@needs_tools
async def test_is_back_at_once(tmp_path: Path) -> None:
    """The guest waits so long when its format process was killed; 30 ms on an idle machine."""
    disk = make_disk(tmp_path / "images")
    times = []
    for _ in range(3):
        began = time.perf_counter()
        async with running(tmp_path, disk) as started:
            await started.read_size()
            times.append(time.perf_counter() - began)
    assert min(times) < 1


def test_a_host_without_it() -> None:
    with pytest.raises(HostLacksError, match="qemu-storage-daemon is not on this host"):
        find_storage_daemon(None)


def test_the_command_line_names_every_file(tmp_path: Path) -> None:
    chain = (ImageFile("/srv/top", DiskFormat.QCOW2), ImageFile("/dev/sdx", DiskFormat.RAW, True))
    disk = DiskSpec(path="/srv/top", format=DiskFormat.QCOW2, cache=CacheMode.NONE)
    program = Path("/usr/bin/qemu-storage-daemon")
    assert build_format_argv(program, disk, chain, 7) == (
        "/usr/bin/qemu-storage-daemon",
        "--blockdev",
        '{"driver": "host_device", "node-name": "disk-backing1-file", "filename": "/dev/sdx",'
        ' "read-only": true, "aio": "threads", "cache": {"direct": true, "no-flush": false},'
        ' "discard": "unmap"}',
        "--blockdev",
        '{"driver": "raw", "node-name": "disk-backing1", "file": "disk-backing1-file", "read-only": true,'
        ' "discard": "unmap"}',
        "--blockdev",
        '{"driver": "file", "node-name": "disk-file", "filename": "/image0", "read-only": false,'
        ' "aio": "threads", "cache": {"direct": true, "no-flush": false}, "discard": "unmap"}',
        "--blockdev",
        '{"driver": "qcow2", "node-name": "disk", "file": "disk-file", "read-only": false,'
        ' "discard": "unmap", "backing": "disk-backing1"}',
        "--export",
        '{"type": "vhost-user-blk", "id": "disk", "node-name": "disk", "writable": true,'
        ' "addr": {"type": "fd", "str": "7"}}',
    )
    tools = SandboxTools(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"), True)
    environment = FormatEnvironment("vm1", tmp_path, tools, program, Path("/usr/lib/x86_64-linux-gnu"))
    sandbox = build_format_sandbox(environment, disk, chain)
    assert sandbox.writable == ((Path("/srv/top"), "/image0"),)
    assert sandbox.devices == ("/dev/sdx",)
    assert sandbox.capabilities == ("dac_override",)
    read_only = disk.model_copy(update={"read_only": True})
    assert build_format_sandbox(environment, read_only, chain).writable == ()


def test_replay_memory_fits_the_format() -> None:
    for disk_format in DiskFormat:
        descriptor = create_disk_replay(DiskSpec(path="/x", format=disk_format))
        word = os.pread(descriptor, 8, 24)
        os.close(descriptor)
        assert any(word) == (disk_format is DiskFormat.VDI)
