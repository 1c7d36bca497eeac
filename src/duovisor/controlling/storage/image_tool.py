"""qemu-img in a sandbox: it sees its own program, the files it is given one by one, and nothing else.

An image comes from anybody. What its header names is read by our own code first (``heads``); QEMU is told of
every file of a chain and finds none by itself, and there is none but those to find.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor import process
from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.preflight import find_libraries
from duovisor.controlling.storage.errors import PoolFullError, VolumeContentError
from duovisor.controlling.storage.heads import SECTOR_BYTES
from duovisor.hardware.capabilities import find_tools
from duovisor.hypervisor.build import USR_MERGED
from duovisor.hypervisor.qemu.images import HAVE_BACKING, ImageFile
from duovisor.process import Process
from duovisor.sandbox import ResourceLimits, Sandbox, SandboxTools, build_sandbox_argv, uid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROLE = "qemu-img"
UID = uid_of("/volumes")  # no VM can have that name
# QEMU has up to 64 threads a process, and all image tools of a host count together: one uid is theirs
LIMITS = ResourceLimits(private_mib=1024, threads=4096, descriptors=256)
TARGET = "/target"
LOOK_TIMEOUT_S = 30.0
WORDS_BYTES = 4096
CAN_BE_CHECKED = ("qcow2", "vmdk", "vdi")
ONLY_LEAKS = 3  # exit status of qemu-img check
_PERCENT = re.compile(r"\((\d+)(?:\.\d+)?/100%\)")


class Source(NamedTuple):
    """One file or device of a chain to be read, with QEMU's name for its format, and that driver's options.

    ``size_bytes``: only so much of its beginning is the image.
    """

    path: Path
    driver: str
    options: Mapping[str, str] = {}
    size_bytes: int | None = None
    is_device: bool = False


@dataclass(frozen=True)
class ImageTool:
    """qemu-img and what makes its sandbox."""

    program: Path
    tools: SandboxTools
    libraries: Path

    async def create(self, target: Path, size_bytes: int, *, base: tuple[str, str] | None = None) -> None:
        """Make an empty qcow2 image of ``target``; ``base`` is the name and format to be read below it."""
        below = () if base is None else ("-u", "-b", base[0], "-F", base[1])
        await self._run(("create", "-q", "-f", "qcow2", *below, TARGET, str(size_bytes)), target=target)

    async def resize(self, target: Path, driver: str, size_bytes: int) -> None:
        """Make an image larger; what is below it is not looked at, as it is never larger than the image."""
        node: dict[str, Any] = {"driver": driver, "file": {"driver": "file", "filename": TARGET}}
        if driver in HAVE_BACKING:
            node["backing"] = None
        await self._run(("resize", "-q", f"json:{json.dumps(node)}", str(size_bytes)), target=target)

    async def read_size(self, chain: Sequence[Source]) -> int:
        """What a guest would see of an image, in bytes. Raises ``VolumeContentError``."""
        words = ("info", "--output=json", build_source(chain))
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                said = await self._run(words, chain=chain)
            return int(json.loads(said)["virtual-size"])
        except TimeoutError as error:
            raise VolumeContentError("the image cannot be looked at in time; is it damaged?") from error
        except (ValueError, KeyError, TypeError) as error:
            raise VolumeContentError("the image cannot be looked at; is it damaged?") from error

    async def check(self, source: Source) -> None:
        """Look for clusters that are not there, of which reading would make zeros.

        Raises ``VolumeContentError``.
        """
        if source.driver in CAN_BE_CHECKED:
            words = ("check", "-q", build_source((source,)))
            await self._run(words, chain=(source,), good=(0, ONLY_LEAKS))

    async def convert(
        self, chain: Sequence[Source], target: Path, driver: str, progress: Callable[[int], None]
    ) -> None:
        """Write all that a chain holds into one image, or a device of zeros; ``progress`` is told in percent.

        Raises ``VolumeContentError`` or ``PoolFullError``.
        """
        inside = await asyncio.to_thread(find_target, target)
        made = () if inside == TARGET else ("-n", "--target-is-zero")
        words = ("convert", "-p", *made, "-O", driver, build_source(chain), inside)
        await self._run(words, chain=chain, target=target, progress=progress)

    async def _run(
        self,
        words: Sequence[str],
        *,
        chain: Sequence[Source] = (),
        target: Path | None = None,
        progress: Callable[[int], None] = lambda percent: None,
        good: Sequence[int | None] = (0,),
    ) -> str:
        """Run it to its end and return what it said; cancelling ends it."""
        sandbox = build_image_sandbox(self, chain, target)
        argv = build_sandbox_argv(sandbox, self.tools, (str(self.program), *words))
        read_fd, write_fd = os.pipe()
        try:
            # a pipe has no file to read last words from: they are collected here. It ends with this process,
            # and does not begin before that is seen to
            log = Path(f"/proc/self/fd/{write_fd}")
            started = process.start(argv, role=ROLE, log=log, sandboxed=True, record=Process.guard)
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            said = await _follow(read_fd, progress)
            status = await started.wait()
        except BaseException:
            await asyncio.shield(started.kill())
            raise
        if status not in good:
            raise _explain(words[0], said)
        return said


def find_image_tool() -> ImageTool:
    """What this host has. Raises ``HostLacksError``."""
    tools, program = find_tools(os.environ), shutil.which("qemu-img")
    if program is None:
        raise HostLacksError(
            "qemu-img is not on this host; without it, volumes can only be raw and whole",
            remedy="apt install qemu-utils",
        )
    if tools.bwrap is None or tools.setpriv is None:
        raise HostLacksError(
            "bubblewrap is not on this host, and images are read only in a sandbox",
            remedy="apt install bubblewrap util-linux",
        )
    made = SandboxTools(tools.bwrap, tools.setpriv, os.geteuid() == 0)
    return ImageTool(Path(os.path.realpath(program)), made, find_libraries())


def build_source(chain: Sequence[Source]) -> str:
    """A chain as one name for qemu-img, explicit to its last file; pure."""
    node: dict[str, Any] | None = None
    for depth, source in reversed(list(enumerate(chain))):
        above: dict[str, Any] = {
            "driver": source.driver,
            "file": _build_file(source, depth),
            **source.options,
        }
        if source.driver in HAVE_BACKING:
            above["backing"] = node
        node = above
    return "json:" + json.dumps(node)


def _build_file(source: Source, depth: int) -> dict[str, Any]:
    file = {
        "driver": "host_device" if source.is_device else "file",
        "filename": str(source.path) if source.is_device else _inside(depth),
    }
    if source.size_bytes is None:
        return file
    # in whole sectors, to which QEMU fills up a file as well
    size_bytes = -(-source.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return {"driver": "raw", "size": size_bytes, "file": file}


def find_target(target: Path) -> str:
    """What a target is called inside; a device keeps its name."""
    return str(target) if target.is_block_device() else TARGET


def build_image_sandbox(tool: ImageTool, chain: Sequence[Source], target: Path | None) -> Sandbox:
    """What qemu-img may see."""
    read_only = [(path, str(path)) for path in (Path("/etc/ld.so.cache"), tool.libraries, tool.program)]
    read_only += [(source.path, _inside(n)) for n, source in enumerate(chain) if not source.is_device]
    devices = [source.path for source in chain if source.is_device]
    writable: tuple[tuple[Path, str], ...] = ()
    if target is not None and target.is_block_device():
        devices.append(target)
    elif target is not None:
        writable = ((target, TARGET),)
    return Sandbox(
        uid=UID,
        read_only=tuple(read_only),
        writable=writable,
        devices=tuple(map(str, devices)),
        links=USR_MERGED,
        if_there=("/usr/lib64",),
        limits=LIMITS,
        capabilities=("dac_override",),  # of all files, only those given are there
    )


def build_chain(images: Sequence[ImageFile]) -> tuple[Source, ...]:
    """A disk's chain as sources."""
    found = [(Path(os.path.realpath(image.path)), image.format.value) for image in images]
    return tuple(Source(path, driver, is_device=path.is_block_device()) for path, driver in found)


def parse_percent(text: str) -> int | None:
    """The last progress in what ``qemu-img -p`` printed; pure."""
    found = _PERCENT.findall(text)
    return int(found[-1]) if found else None


async def _follow(read_fd: int, progress: Callable[[int], None]) -> str:
    """Read until the program has ended; returns the end of what it said, without its progress."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
    )
    said = ""
    with contextlib.closing(transport):
        while chunk := await reader.read(WORDS_BYTES):
            text = said[-WORDS_BYTES:] + chunk.decode(errors="replace")
            if (percent := parse_percent(text)) is not None:
                progress(percent)
            said = re.sub(r"\s*\([^()\n]*/100%\)\s*", "", text)
    return said


def _explain(action: str, said: str) -> VolumeContentError | PoolFullError:
    words = process.last_words(said.replace("qemu-img: ", "")) or "without a word"
    if "No space left" in words or "Disk quota" in words:
        return PoolFullError(f"the pool became full: {words}", remedy="delete volumes, or use another pool")
    return VolumeContentError(f"qemu-img {action} failed: {words}")


def _inside(depth: int) -> str:
    return f"/source{depth}"
