"""The storage driver as a process, started as a partition starts it, without the sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import duovisor

if TYPE_CHECKING:
    from collections.abc import Sequence

MAIN = "from duovisor.controlling.drivers.block import main; main()"
SOURCE = str(Path(duovisor.__file__).parent.parent)


class DriverProcess:
    """A running driver; ``channel`` is the front end's end of its socket."""

    def __init__(self, image: Path, options: Sequence[str] = (), *, flags: int = os.O_RDWR) -> None:
        self.channel, theirs = socket.socketpair()
        descriptor = os.open(image, flags)
        channel = theirs.fileno()
        self.process = subprocess.Popen(
            build_argv("--channel-fd", str(channel), "--image-fd", str(descriptor), *options),
            pass_fds=(channel, descriptor), env={"PYTHONPATH": SOURCE}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()
        os.close(descriptor)

    def kill(self) -> None:
        """End it at once, and wait until it is gone: only then may a successor touch the image."""
        self.process.kill()
        self.process.communicate()
        self.channel.close()

    def finish(self) -> tuple[int, str]:
        """Close the channel unless that happened, and wait: exit status and what was said."""
        self.channel.close()
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


def build_argv(*options: str) -> list[str]:
    return [sys.executable, "-S", "-s", "-B", "-c", MAIN, *options]
