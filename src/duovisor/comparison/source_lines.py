"""Lines of QEMU's source by what they are for: those that can be in the program of an x86 host."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNT = "source.json"
SUFFIXES = (".c", ".h", ".c.inc", ".h.inc")
DEVICES, BLOCK, NETWORK, PROCESSORS, REST = "devices", "block", "network", "processors", "rest"
# other programs, other architectures' parts, and what is only there to build or test it
_NOT_IN_IT = frozenset((
    "tests", "roms", "pc-bios", "docs", "subprojects", "linux-user", "bsd-user", "common-user", "contrib",
    "tools", "storage-daemon", "qga", "scripts", "python", "linux-headers", "fpu-tests", "plugins", "debian",
    "slirp", "dtc", "capstone", "ui/keycodemapdb",
))  # fmt: skip
_OTHER_BOARDS = frozenset((
    "alpha", "arm", "avr", "cris", "hppa", "loongarch", "m68k", "microblaze", "mips", "nios2", "openrisc",
    "ppc", "riscv", "rx", "s390x", "sh4", "sparc", "sparc64", "tricore", "xtensa",
))  # fmt: skip
_OTHER_HOSTS = frozenset(("aarch64", "arm", "loongarch64", "mips", "ppc", "riscv", "s390x", "sparc64", "tci"))


class SourceCount(BaseModel):
    """``package``: name and version of the distribution's source; ``lines`` by what they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: str
    lines: dict[str, int]


def load_count(folder: Path) -> SourceCount | None:
    """What was counted for a comparison; None when nothing was, or it cannot be read."""
    try:
        return SourceCount.model_validate_json((folder / COUNT).read_bytes())
    except (OSError, ValidationError):
        return None


def count_archive(archive: Path) -> dict[str, int]:
    """Count a source's tar archive, file by file. Raises ``OSError`` and ``tarfile.TarError``."""
    found: Counter[str] = Counter()
    with tarfile.open(archive, mode="r|*") as source:
        for member in source:
            path = PurePosixPath(member.name)
            kind = classify(PurePosixPath(*path.parts[1:]))
            if kind and member.isfile() and (file := source.extractfile(member)):
                found[kind] += _count(file)
    return dict(found)


def classify(path: PurePosixPath) -> str:
    """What a file is for; empty when it cannot be in the program, or is no C. ``path`` is in the source."""
    parts = path.parts
    if not path.name.endswith(SUFFIXES) or parts[0] in _NOT_IN_IT:
        return ""
    second = parts[1] if len(parts) > 2 else ""
    match parts[0]:
        case "include":
            return "" if second in ("standard-headers", "user") else classify_header(second)
        case "hw":
            return "" if second in _OTHER_BOARDS else DEVICES
        case "target":
            return PROCESSORS if second in ("i386", "") else ""
        case "tcg":
            return "" if second in _OTHER_HOSTS else PROCESSORS
        case "accel" | "fpu" | "disas":
            return PROCESSORS
        case "block" | "nbd" | "scsi":
            return BLOCK
        case "net":
            return NETWORK
        case name if len(parts) == 1 and name.startswith("block"):
            return BLOCK
    return REST


def classify_header(folder: str) -> str:
    """What the headers of a folder of ``include`` are for."""
    kinds = {"hw": DEVICES, "block": BLOCK, "scsi": BLOCK, "net": NETWORK, "tcg": PROCESSORS}
    return kinds.get(folder, REST)


def _count(file: IO[bytes]) -> int:
    return count_lines(file.read().decode(errors="replace").splitlines())


def count_lines(lines: Iterable[str]) -> int:
    """Lines of C that are neither empty nor part of a comment alone."""
    total, inside = 0, False
    for line in lines:
        text = line.strip()
        if inside:
            inside, text = "*/" not in text, text.partition("*/")[2].strip()
        while text.startswith("/*"):
            inside, text = "*/" not in text, text.partition("*/")[2].strip()
        total += bool(text) and not text.startswith("//")
    return total
