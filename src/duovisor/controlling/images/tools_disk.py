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
    """Write the disk image ``disk``; ``scratch`` is a folder for what goes into it."""
    fio = shutil.which("fio")
    if fio is None:
        raise ImageBuildError("fio is not installed", remedy="apt-get install fio")
    needed = parse_ldd(process.run(["ldd", fio]))
    content = scratch / "tools"
    (content / "lib").mkdir(parents=True)
    shutil.copyfile(fio, content / "fio")
    shutil.copyfile(needed.loader, content / "lib/loader")
    for name, path in needed.libraries.items():
        shutil.copyfile(path, content / "lib" / name)
    for program in (content / "fio", content / "lib/loader"):
        program.chmod(0o755)
    size = compute_disk_bytes(path.stat().st_size for path in content.rglob("*") if path.is_file())
    with disk.open("wb") as file:
        file.truncate(size)
    process.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "256", "-b", "4096",
         "-L", "duovisor-tools", "-d", str(content), str(disk)],
        remedy="apt-get install e2fsprogs",
    )  # fmt: skip
