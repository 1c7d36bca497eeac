"""Makes the tools disk: an ext4 image with the host's fio and every library it needs, without mounting."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor import process
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.spec.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARY = re.compile(r"^\s*(?P<name>\S+) => (?P<path>/\S+) \(0x[0-9a-f]+\)$")
_LOADER = re.compile(r"^\s*(?P<path>/\S+) \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"^\s*(?P<name>\S+) => not found$")
_OVERHEAD_BYTES = 4 * MIB  # the file system's own tables, generously


class Libraries(NamedTuple):
    """What a program needs at run time: the dynamic loader, and library name → file."""

    loader: Path
    libraries: dict[str, Path]


def parse_ldd(text: str) -> Libraries:
    """Read what ``ldd PROGRAM`` printed; raises ``ImageBuildError`` for a library that is missing."""
    libraries: dict[str, Path] = {}
    loader: Path | None = None
    for line in text.splitlines():
        if match := _MISSING.match(line):
            raise ImageBuildError(
                f"the library {match['name']} is missing", remedy="apt-get install --fix-broken"
            )
        if match := _LIBRARY.match(line):
            libraries[match["name"]] = Path(match["path"])
        elif match := _LOADER.match(line):
            loader = Path(match["path"])
    if loader is None:
        raise ImageBuildError("ldd named no dynamic loader")
    return Libraries(loader, libraries)


def compute_disk_bytes(file_bytes: Iterable[int]) -> int:
    """Size of a disk that holds files of these sizes, a whole number of MiB."""
    content = sum(-(-size // 4096) * 4096 for size in file_bytes)
    return -(-(content * 102 // 100 + _OVERHEAD_BYTES) // MIB) * MIB


def build_tools_disk(disk: Path, scratch: Path) -> None:
    """Write the disk image ``disk`` with fio; ``scratch`` is a folder for what goes into it."""
    build_program_disk(disk, scratch, "fio", label="duovisor-tools")


def build_program_disk(disk: Path, scratch: Path, *programs: str, label: str) -> None:
    """Write a disk image with programs of the host's: ``lib/loader --library-path lib PROGRAM`` runs one.

    Raises ``ImageBuildError`` when one is not installed.
    """
    content = scratch / "tools"
    (content / "lib").mkdir(parents=True)
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise ImageBuildError(f"{program} is not installed", remedy=f"apt-get install {program}")
        needed = parse_ldd(process.run(["ldd", path]))
        shutil.copyfile(path, content / program)
        shutil.copyfile(needed.loader, content / "lib/loader")
        for name, library in needed.libraries.items():
            shutil.copyfile(library, content / "lib" / name)
        for each in (content / program, content / "lib/loader"):
            each.chmod(0o755)
    size = compute_disk_bytes(each.stat().st_size for each in content.rglob("*") if each.is_file())
    with disk.open("wb") as file:
        file.truncate(size)
    process.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "256", "-b", "4096",
         "-L", label, "-d", str(content), str(disk)],
        remedy="apt-get install e2fsprogs",
    )  # fmt: skip
