"""Finds a kernel's modules and the order in which they must be loaded.

A kernel package does not hold ``modules.dep`` (depmod writes it at installation), so the dependencies are
read from the modules themselves: the ``.modinfo`` section has ``depends=a,b`` and ``softdep=pre: c``.
"""

from __future__ import annotations

import gzip
import lzma
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor import process
from duovisor.controlling.images.errors import ImageBuildError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FILE = re.compile(r"^(?P<name>.+)\.ko(?:\.(?:xz|zst|gz))?$")
_DEPENDS = re.compile(rb"(?:^|[^ -~])depends=([\w,-]*)\0")  # an entry begins after a byte that is no text
_SOFT = re.compile(rb"(?:^|[^ -~])softdep=pre: *([^\0]*)\0")


class Module(NamedTuple):
    """A kernel module: its name with underscores, and its file's bytes, uncompressed."""

    name: str
    data: bytes


def normalize_name(name: str) -> str:
    """The kernel takes ``virtio-pci`` and ``virtio_pci`` as the same module."""
    return name.replace("-", "_")


def find_module_files(tree: Path) -> dict[str, Path]:
    """Map module name → file of everything under ``/lib/modules/RELEASE``."""
    files = {}
    for path in tree.rglob("*.ko*"):
        if match := _FILE.match(path.name):
            files[normalize_name(match["name"])] = path
    return files


def read_built_in(tree: Path) -> frozenset[str]:
    """Names of the modules that are part of the kernel itself; empty where the list is missing."""
    try:
        text = (tree / "modules.builtin").read_text()
    except FileNotFoundError:
        return frozenset()
    names = (line.rpartition("/")[2].removesuffix(".ko") for line in text.splitlines())
    return frozenset(normalize_name(name) for name in names)


def parse_dependencies(data: bytes) -> tuple[list[str], list[str]]:
    """The modules that must, and those that should, be loaded before the module whose file is ``data``."""
    hard = _DEPENDS.search(data)
    soft = _SOFT.search(data)
    must = hard[1].decode().split(",") if hard and hard[1] else []
    should = soft[1].decode().partition("post:")[0].split() if soft else []
    return [normalize_name(name) for name in must], [normalize_name(name) for name in should]


def read_module(path: Path) -> bytes:
    """A module's ELF file, uncompressed; needs the ``zstd`` program for ``.ko.zst``."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        with tempfile.TemporaryDirectory(prefix="duovisor-module-") as folder:
            output = Path(folder) / path.stem
            process.run(["zstd", "-dqo", str(output), str(path)], remedy="apt-get install zstd")
            return output.read_bytes()
    return path.read_bytes()


def resolve_modules(tree: Path, wanted: Iterable[str]) -> list[Module]:
    """The modules that make ``wanted`` work, in load order, without what is built in.

    Raises ``ImageBuildError`` when one is neither a module nor built in.
    """
    files = find_module_files(tree)
    built_in = read_built_in(tree)
    seen: set[str] = set()
    ordered: list[Module] = []

    def visit(name: str) -> None:
        if name in seen or name in built_in:
            return
        seen.add(name)
        if name not in files:
            raise ImageBuildError(f"the kernel {tree.name} has no module {name}", remedy="use another kernel")
        data = read_module(files[name])
        must, should = parse_dependencies(data)
        for other in [*(name for name in should if name in files), *must]:
            visit(other)
        ordered.append(Module(name, data))

    for name in wanted:
        visit(normalize_name(name))
    return ordered
