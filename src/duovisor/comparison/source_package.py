"""Fetches the source of the QEMU that is installed, where a person asks for it: apt, Debian and Ubuntu.

With lists and folders of its own: neither the host's sources nor its lists are changed.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.comparison.errors import SourceError
from duovisor.comparison.source_lines import COUNT, SourceCount, count_archive

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "qemu-system-x86_64"
SOURCES = Path("/etc/apt")
UPDATE_S, DOWNLOAD_S = 300.0, 1200.0
REMEDY = "leave --count-source out; everything else is measured without it"


def count_source(folder: Path, tell: Callable[[str], None], sources: Path = SOURCES) -> None:
    """Fetch, count, and keep the count in a comparison's folder. Raises ``SourceError``."""
    try:
        package, version = _find_source()
        with tempfile.TemporaryDirectory(prefix="duovisor-source-") as scratch:
            tell(f"downloading the source of {package} {version}")
            archive = _fetch(package, version, Path(scratch), sources)
            tell(f"counting {archive.name}")
            lines = count_archive(archive)
        if not lines:
            raise SourceError(f"there is no C in {archive.name}", remedy=REMEDY)
        count = SourceCount(package=f"{package} {version}", lines=lines)
        fresh = folder / f"{COUNT}.new"
        fresh.write_text(count.model_dump_json(indent=2) + "\n")
        fresh.replace(folder / COUNT)
    except (process.ProcessError, OSError, tarfile.TarError) as error:
        raise SourceError(f"QEMU's source cannot be counted: {error}", remedy=REMEDY) from error


def _find_source() -> tuple[str, str]:
    """Name and version of the source package that the installed program was built from."""
    path = shutil.which(PROGRAM)
    if path is None or shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise SourceError("only the packages of Debian and Ubuntu have their source found", remedy=REMEDY)
    owner = process.run(["dpkg-query", "-S", str(Path(path).resolve())]).partition(":")[0]
    said = process.run(["dpkg-query", "-W", "-f", "${source:Package} ${source:Version}\n", owner])
    package, _, version = said.splitlines()[0].partition(" ")
    return package, version


def _fetch(package: str, version: str, scratch: Path, sources: Path) -> Path:
    for name in ("parts", "lists/partial", "cache/archives/partial", "source"):
        (scratch / name).mkdir(parents=True)
    for path in [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            (scratch / "parts" / path.name).write_text(ask_for_source(path.read_text()))
    places = {
        "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": f"{scratch}/parts",
        "Dir::State::lists": f"{scratch}/lists", "Dir::Cache": f"{scratch}/cache",
    }  # fmt: skip
    options = [f"-o{name}={value}" for name, value in places.items()]
    process.run(["apt-get", *options, "-qq", "update"], timeout_s=UPDATE_S)
    argv = ["apt-get", *options, "-qq", "source", "--download-only", f"{package}={version}"]
    process.run(argv, timeout_s=DOWNLOAD_S, cwd=scratch / "source")
    archives = sorted((scratch / "source").glob("*.orig.tar.*")) or sorted(
        (scratch / "source").glob("*.tar.*")
    )
    archives = [path for path in archives if path.suffix != ".asc"]
    if not archives:
        raise SourceError(f"apt gave no source of {package} {version}", remedy=REMEDY)
    return archives[0]


def ask_for_source(text: str) -> str:
    """An apt source, in either of its two formats, that asks for sources in the place of programs; pure."""
    lines = []
    for line in text.splitlines():
        if line.startswith("deb "):
            line = line.replace("deb ", "deb-src ", 1)
        elif line.startswith("Types:"):
            line = "Types: deb-src"
        lines.append(line)
    return "\n".join(lines) + "\n"
