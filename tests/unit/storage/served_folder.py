"""A folder that a server holds, as NFS does: mounted or not, answering or not. Its server is bindfs (FUSE).

The kernel's own NFS server needs a kernel that has one; what is said of a mount of NFS, is said of this here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.storage import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOUNT_TIMEOUT_S = 60.0
EVERYBODY = ("--perms=a+rwX", "--chown-ignore")  # what all_squash comes to


class ServedFolder:
    """``path`` is where it is mounted, ``behind`` what the server has."""

    def __init__(self, root: Path) -> None:
        self.path, self.behind = root / "served", root / "behind"
        self.path.mkdir()
        self.behind.mkdir()
        self._server: subprocess.Popen[bytes] | None = None

    def mount(self, *options: str) -> None:
        """Mount it, as NFS that everybody may use unless options say otherwise."""
        words = ("bindfs", "-f", *(options or EVERYBODY), str(self.behind), str(self.path))
        self._server = subprocess.Popen(words)
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not os.path.ismount(self.path):
            assert self._server.poll() is None, "bindfs ended"
            assert time.monotonic() < deadline, "bindfs did not mount in time"
            time.sleep(0.01)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        assert self._server is not None
        self._server.wait(MOUNT_TIMEOUT_S)
        self._server = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The server does not answer inside."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Whoever still waits for an answer gets an error."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(MOUNT_TIMEOUT_S)
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedFolder]:
    """Not mounted yet."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting needs root and FUSE")
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed: apt install bindfs")
    monkeypatch.setattr(mounts, "NFS_TYPES", ("fuse", "fuse.bindfs"))
    folder = ServedFolder(tmp_path)
    try:
        yield folder
    finally:
        folder.close()
