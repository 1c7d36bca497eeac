"""Builds an image in a process of its own: it can be stopped at any moment, and its memory goes with it.

``python -m duovisor.controlling.service.image_builder probe REPORT_FD [force]`` writes one JSON object per
line to the descriptor: ``{"message": …}`` while it works, ``{"fault": {code, message, remedy}}`` at the end
of a build that failed. SIGTERM ends it through the clean-up.
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
    from types import FrameType

    from duovisor.controlling.vms.records import Progress

STEPS = 8  # about as many lines as a build reports; the percentage is a guess, the message is not
MOST_PERCENT = 95
GRACE_S = 20.0


class ReportedFaultError(ImageBuildError):
    """What the builder reported; it carries the code of the error that the builder met."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code  # type: ignore[misc]  # of this one error, not of the class


async def build_image(name: str, progress: Progress, *, force: bool) -> None:
    """Build an image, reporting progress; cancelling ends the builder, which leaves nothing half-made.

    Raises ``DuovisorError``.
    """
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryDirectory(prefix="duovisor-image-") as folder:
        argv = [sys.executable, "-m", __name__, name, str(write_fd), *(["force"] if force else [])]
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


def main(name: str, report_fd: int, *, force: bool) -> int:
    """Build; returns the exit status."""
    from duovisor.controlling.images.probe import NAME, build_probe_image
    from duovisor.directories import find_directories

    assert name == NAME  # the service offers no other
    signal.signal(signal.SIGTERM, _leave)
    with os.fdopen(report_fd, "w", buffering=1) as reports:
        try:
            build_probe_image(
                find_directories(),
                lambda line: print(json.dumps({"message": line}), file=reports),
                force=force,
            )
        except DuovisorError as error:
            fault = {"code": error.code, "message": error.message, "remedy": error.remedy}
            print(json.dumps({"fault": fault}), file=reports)
            return 1
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), force="force" in sys.argv[3:]))
