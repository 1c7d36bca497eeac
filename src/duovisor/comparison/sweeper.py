"""Takes away what a comparison leaves on the host, when it ends: in order, or by ``kill -9``.

``python -m duovisor.comparison.sweeper FOLDER…`` waits for the end of its standard input, whose other end the
comparison holds. Then it ends every process that names a file in one of the folders, unmounts what is mounted
there, and removes them. It knows nothing else, so that it cannot fail with what it cleans up after.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PATIENCE_S = 10.0
POLL_S = 0.02


@contextlib.contextmanager
def sweeping(*folders: Path) -> Iterator[None]:
    """The folders and all that names them are gone afterwards, whatever ends this process."""
    argv = [sys.executable, "-P", "-m", __name__, *map(str, folders)]
    sweeper = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
    )
    assert sweeper.stdin is not None
    try:
        yield
    finally:
        sweeper.stdin.close()
        sweeper.wait()


def sweep(folders: Iterable[Path]) -> None:
    """End, unmount and remove."""
    deadline = time.monotonic() + PATIENCE_S
    for folder in folders:
        while (found := find_processes(folder)) and time.monotonic() < deadline:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        for place in reversed(find_mounts(folder)):
            subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def find_processes(folder: Path) -> list[int]:
    """Processes that name a file in a folder on their command line or print to one, but for this one."""
    found, wanted = [], bytes(folder) + b"/"
    for each in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(each / "cmdline").read_bytes()]
            texts += [os.fsencode(os.readlink(each / "fd" / number)) for number in ("1", "2")]
        except OSError:
            continue  # it has just ended, or is not ours
        if any(wanted in text for text in texts) and int(each.name) != os.getpid():
            found.append(int(each.name))
    return found


def find_mounts(folder: Path, mounts: Path = Path("/proc/mounts")) -> list[str]:
    """What is mounted in a folder, in the order of mounting."""
    places = [line.split()[1] for line in mounts.read_text().splitlines()]
    return [place for place in places if place.startswith(f"{folder}/")]


if __name__ == "__main__":
    sys.stdin.read()
    sweep(map(Path, sys.argv[1:]))
