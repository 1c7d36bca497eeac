"""A disk's whole stack without a VM: image, format process, driver and front end; each may be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import duovisor
from duovisor.controlling.drivers.format_link import ask_capacity
from duovisor.controlling.drivers.replay_memory import create_replay
from duovisor.controlling.formats.vhdx_log import clear_stale_log
from duovisor.hypervisor.qemu.images import ImageFile, build_image_nodes
from duovisor.spec.vm import CacheMode, DiskFormat

if TYPE_CHECKING:
    from duovisor.channel.frontend import FrontEnd

SOURCE = str(Path(duovisor.__file__).parent.parent)
MAIN = Path(__file__).with_name("driver_main.py")


def create_image(path: Path, disk_format: DiskFormat, size: int, *options: str) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", disk_format, *options, str(path), str(size)], check=True
    )


class FormatServer:
    """qemu-storage-daemon without a sandbox."""

    def __init__(self, chain: tuple[ImageFile, ...], folder: Path, *, read_only: bool = False) -> None:
        if chain[0].format is DiskFormat.VHDX and not read_only:
            with open(chain[0].path, "r+b") as file:
                clear_stale_log(file.fileno())
        self.path = folder / "format.sock"
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(4)
            nodes = build_image_nodes(
                "disk", chain, cache=CacheMode.WRITEBACK, read_only=read_only, aio="threads"
            )
            words = [word for node in nodes for word in ("--blockdev", json.dumps(node))]
            export = {"type": "vhost-user-blk", "id": "disk", "node-name": "disk", "writable": not read_only}
            address = {"type": "fd", "str": str(listener.fileno())}
            self.process = subprocess.Popen(
                ["qemu-storage-daemon", *words, "--export", json.dumps(export | {"addr": address})],
                pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

    def connect(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(self.path))
        return connected

    def kill(self) -> str:
        """Kill it and return what it said."""
        self.process.kill()
        return self.process.communicate()[1]

    def stop(self) -> str:
        """End it in an orderly way and return what it said."""
        self.process.terminate()
        return self.process.communicate(timeout=60)[1]


class DriverProcess:
    """A running driver; ``channel`` is the front end's end of its socket."""

    def __init__(self, replay: int, connection: socket.socket | None, words: list[str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.control, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = [theirs.fileno(), orders.fileno(), replay, connection.fileno() if connection else -1]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-B", str(MAIN), *map(str, numbers), *words],
            pass_fds=[number for number in numbers if number >= 0], env={"PYTHONPATH": SOURCE},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()
        orders.close()

    def attach(self, connection: socket.socket) -> None:
        socket.send_fds(self.control, [b"format"], [connection.fileno()])

    def kill(self) -> str:
        self.process.kill()
        return self._end()

    def stop(self) -> str:
        """Close the channel as a VMM that ends does; return what was said."""
        self.channel.close()
        said = self._end()
        assert self.process.returncode == 0, said
        return said

    def _end(self) -> str:
        said = self.process.communicate(timeout=60)[1]
        self.channel.close()
        self.control.close()
        return said


class Stack:
    """An image with its processes; ``front`` finds the driver again after each replacement."""

    def __init__(
        self,
        path: Path,
        disk_format: DiskFormat,
        front: FrontEnd,
        *,
        backing: tuple[ImageFile, ...] = (),
        options: tuple[str, ...] = (),
        replay_bytes: int = 4 << 20,
        read_only: bool = False,
    ) -> None:
        self.front = front
        self.chain = (ImageFile(str(path), disk_format), *backing)
        self.read_only = read_only
        self.replay = create_replay(replay_bytes, one_change=disk_format is DiskFormat.VDI)
        self.server = FormatServer(self.chain, path.parent, read_only=read_only)
        self.size = ask_capacity(self.server.connect(), 10)
        self.words = ["--size", str(self.size), *options, *(["--read-only"] if read_only else [])]
        self.connection: socket.socket | None = self.server.connect()
        self.said = ""
        self.start_driver()

    def start_driver(self) -> None:
        self.driver = DriverProcess(self.replay, self.connection, self.words)
        self.front.connect(self.driver.channel)

    def kill_driver(self) -> None:
        """The successor goes on with the same connection."""
        self.said += self.driver.kill()
        self.start_driver()

    def kill_format(self) -> None:
        """The next format process is attached to the same driver."""
        self.lose_format()
        self.start_format()

    def lose_format(self) -> None:
        self.server.kill()
        self._drop_connection()

    def start_format(self) -> None:
        self.server = FormatServer(self.chain, Path(self.chain[0].path).parent, read_only=self.read_only)
        self.connection = self.server.connect()
        self.driver.attach(self.connection)

    def kill_both(self) -> None:
        self.server.kill()
        self.said += self.driver.kill()
        self._drop_connection()
        self.server = FormatServer(self.chain, Path(self.chain[0].path).parent, read_only=self.read_only)
        self.connection = self.server.connect()
        self.start_driver()

    def _drop_connection(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """End all in order, so that the image is closed cleanly; after a failure, at once."""
        if failed is None:
            self._close()
            return
        print(self.said, self.driver.kill(), self.server.kill(), sep="\n")
        self._drop_connection()
        os.close(self.replay)

    def _close(self) -> None:
        self.front.disconnect()
        self.said += self.driver.stop()
        self._drop_connection()
        said = self.server.stop()
        # SIGTERM kills it as long as it has not come to open its image
        assert self.server.process.returncode in (0, -signal.SIGTERM), said
        os.close(self.replay)


def check_image(path: Path, disk_format: DiskFormat) -> None:
    """``qemu-img check`` finds nothing wrong but leaked clusters.

    VDI has no place to note these, and it calls them errors; a block used twice is one that would matter.
    """
    done = subprocess.run(
        ["qemu-img", "check", "-f", disk_format, str(path)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if disk_format is DiskFormat.VDI and done.returncode == 2:
        assert "also used" not in said, said
    else:
        assert done.returncode in (0, 3), said


def compare_images(first: Path, first_format: DiskFormat, second: Path) -> None:
    """Both read the same; the second is raw."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", first_format, "-F", "raw", str(first), str(second)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
