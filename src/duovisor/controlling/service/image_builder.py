"""Builds an image in a process of its own: it can be stopped at any moment, and its memory goes with it.

``python -m duovisor.controlling.service.image_builder RECIPE REPORT_FD [force|FOLDER]`` writes one JSON
object per line to the descriptor: ``{"message": …}`` while it works, ``{"fault": {code, message, remedy}}``
at the end of a build that failed. SIGTERM ends it through the clean-up.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from duovisor.controlling.vms.records import Progress

STEPS = 8  # about as many lines as a build reports; the percentage is a guess, the message is not
MOST_PERCENT = 95
GRACE_S = 20.0
FORCE = "force"


class ReportedFaultError(ImageBuildError):
    """What the builder reported; it carries the code of the error that the builder met."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code  # type: ignore[misc]  # of this one error, not of the class


async def build_image(name: str, progress: Progress, *, force: bool) -> None:
    """Build an image that starts from its kernel, reporting progress; as ``run_builder``."""
    await run_builder((name,), (FORCE,) if force else (), progress)


async def build_system(recipe: str, folder: Path, progress: Progress) -> None:
    """Build the files of an image that starts from its disk in ``folder``; as ``run_builder``."""
    await run_builder((recipe,), (str(folder),), progress)


async def run_builder(before: tuple[str, ...], after: tuple[str, ...], progress: Progress) -> None:
    """Run the builder; cancelling ends it, and it leaves nothing half-made. Raises ``DuovisorError``."""
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryDirectory(prefix="duovisor-image-") as folder:
        argv = [sys.executable, "-m", __name__, *before, str(write_fd), *after]
        try:
            builder = process.start(
                argv,
                role="image-builder",
                log=Path(folder, "log"),
                pass_fds=(write_fd,),
                die_with_owner=True,
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            fault = await _follow(read_fd, progress)
            status = await builder.wait()
        except BaseException:
            await asyncio.shield(builder.stop(grace_s=GRACE_S))
            raise
        if fault is not None:
            raise fault
        if status:
            raise builder.failure()


async def _follow(read_fd: int, progress: Progress) -> ReportedFaultError | None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb")
    )
    fault, step = None, 0
    try:
        async for line in reader:
            report = json.loads(line)
            if "fault" in report:
                fault = ReportedFaultError(**report["fault"])
            else:
                step += 1
                progress(min(step * 100 // STEPS, MOST_PERCENT), report["message"])
    finally:
        transport.close()
    return fault


def main(recipe: str, report_fd: int, words: list[str]) -> int:
    """Build; returns the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    with os.fdopen(report_fd, "w", buffering=1) as reports:
        try:
            _build(recipe, words, lambda line: print(json.dumps({"message": line}), file=reports))
        except DuovisorError as error:
            fault = {"code": error.code, "message": error.message, "remedy": error.remedy}
            print(json.dumps({"fault": fault}), file=reports)
            return 1
    return 0


def _build(recipe: str, words: list[str], progress: Callable[[str], None]) -> None:
    from duovisor.controlling.images import debian, probe
    from duovisor.directories import find_directories

    match recipe:
        case probe.NAME:
            probe.build_probe_image(find_directories(), progress, force=FORCE in words)
        case debian.NAME:
            debian.build_debian(Path(words[0]), progress)
        case _:
            raise ImageBuildError(f"there is no recipe {recipe!r}")


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
