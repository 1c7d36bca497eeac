"""A media server in its sandbox: what it serves and sees, and that another one takes its place."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.formats.process import FormatEnvironment
from duovisor.controlling.leftovers import adopt_process
from duovisor.controlling.media.drives import Media
from duovisor.controlling.media.server import MediaServer, check_medium
from duovisor.controlling.preflight import find_libraries
from duovisor.hardware.sandboxing import probe_sandbox
from duovisor.process_identity import read_children
from duovisor.sandbox import SandboxTools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.supervision.records import DriverEvent

PROGRAMS = [shutil.which(name) for name in ("qemu-storage-daemon", "qemu-io", "bwrap", "setpriv")]


class Host:
    """A VM's run folder, with an image that root alone may read, and what was told of its server."""

    def __init__(self, folder: Path) -> None:
        daemon, _, bwrap, setpriv = (Path(str(each)) for each in PROGRAMS)
        tools = SandboxTools(bwrap, setpriv, os.geteuid() == 0)
        self.image = folder / "disc.iso"
        self.image.write_bytes(b"disc" * 4096)
        self.image.chmod(0o400)
        self.run_dir = folder
        self.environment = FormatEnvironment("vm", folder, tools, daemon, find_libraries())
        self.events: list[str] = []
        self.notes = 0

    def build(self) -> MediaServer:
        return MediaServer(self.environment, 0, str(self.image), self._note, self.tell)

    async def read(self) -> None:
        """Read the medium as a VMM does; what comes must be right."""
        socket = self.run_dir / "media/cdrom0.sock"
        command = [str(PROGRAMS[1]), "-r", "-f", "raw", f"nbd+unix:///cdrom0?socket={socket}"]
        command += ["-c", "read -v 0 16"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
        assert "64 69 73 63" in done.stdout, done

    async def wait_for(self, kind: str) -> None:
        async with asyncio.timeout(120):
            while kind not in self.events:
                await asyncio.sleep(0.02)

    def _note(self) -> None:
        self.notes += 1

    def tell(self, event: DriverEvent) -> None:
        assert event.device == "cdrom0"
        self.events.append(event.kind.value)


@pytest.fixture
def host() -> Iterator[Host]:
    if None in PROGRAMS:
        pytest.skip("qemu-storage-daemon, qemu-io, bubblewrap or setpriv is not installed")
    probe = probe_sandbox(Path(str(PROGRAMS[2])), Path("/"))
    if not probe.works:
        pytest.skip(f"no sandbox: {probe.reason}")
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Host(Path(name))


async def test_one_that_dies_is_followed_by_another(host: Host) -> None:
    server = host.build()
    server.start()
    try:
        await host.read()
        assert server.described is not None
        (inside,) = read_children(server.described.pid)
        assert sorted(os.listdir(f"/proc/{inside}/root")) == [
            "bin", "dev", "etc", "image0", "lib", "lib64", "sbin", "usr",
        ]  # fmt: skip
        os.kill(inside, signal.SIGKILL)
        await host.wait_for("driver-recovered")
        await host.read()
        assert (host.events, host.notes) == (["driver-died", "driver-recovered"], 2)
    finally:
        await server.end()
    assert list((host.run_dir / "media").iterdir()) == []


async def test_it_outlives_its_owner_and_one_that_ended_meanwhile_is_replaced(host: Host) -> None:
    first = host.build()
    first.start()
    await host.read()
    await first.let_go()
    left = first.described
    assert left is not None
    second = host.build()
    second.adopt(adopt_process(left, host.run_dir), left)
    try:
        assert second.is_running
        await host.read()
        assert host.events == []
        await second.let_go()
        running = adopt_process(left, host.run_dir)
        assert running is not None
        await running.kill()
    finally:
        third = host.build()
        third.adopt(adopt_process(left, host.run_dir), left)
        await host.wait_for("driver-recovered")
        await host.read()
        await third.end()


async def test_what_cannot_be_started_is_tried_again(host: Host) -> None:
    server = host.build()
    away = host.image.rename(host.run_dir / "away.iso")
    server.start()
    try:
        await host.wait_for("driver-died")
        away.rename(host.image)
        async with asyncio.timeout(120):
            while True:
                try:
                    await host.read()
                    break
                except AssertionError:
                    await asyncio.sleep(0.1)
    finally:
        await server.end()


def test_what_can_be_in_a_drive(tmp_path: Path) -> None:
    empty, image = tmp_path / "empty.iso", tmp_path / "disc.iso"
    empty.touch()
    image.write_bytes(b"disc")
    check_medium(str(image))
    for path, said in (
        (tmp_path / "none", "cannot read the CD-ROM image .*: No such file or directory"),
        (tmp_path, "is no regular file"),
        (Path("/dev/null"), "is no regular file"),
        (empty, "is empty"),
    ):
        with pytest.raises(DiskFileError, match=said):
            check_medium(str(path))


async def test_it_is_written_down_from_before_its_program_begins_until_it_has_ended(host: Host) -> None:
    """Whoever comes after a kill, whenever that is, finds every server that there is."""
    written: list[list[str]] = []
    media = Media(host.run_dir, lambda: written.append([each.device for each in media.describe()]), host.tell)
    (host.run_dir / "media").mkdir(mode=0o711)
    media.insert(0, str(host.image), host.environment)
    assert written == [["cdrom0"]]
    await host.read()
    ending = asyncio.create_task(media.eject(0))
    await asyncio.sleep(0)
    assert [each.device for each in media.describe()] == ["cdrom0"]
    await ending
    assert written == [["cdrom0"], []]
    await media.eject(0)
