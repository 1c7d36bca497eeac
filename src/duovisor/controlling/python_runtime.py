"""What a Python process in a sandbox needs of the host: the interpreter, its library, our driver code.

Asked of the interpreter and the dynamic loader once, and cached: both answers cost 50 ms.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import duovisor
from duovisor import process

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = Path(duovisor.__file__).parent
SANDBOX_PACKAGE = "/duovisor"  # what PYTHONPATH names inside the sandbox
DRIVER_CODE = (
    "__init__.py",
    "__pycache__",
    "errors.py",
    "channel",
    "controlling/__init__.py",
    "controlling/drivers",
)
LOADER = Path("/lib64/ld-linux-x86-64.so.2")

_FIND_EXTENSIONS = """
import sys; sys.path[:0] = [sys.argv[1]]
import duovisor.controlling.drivers.block
files = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
print("\\n".join(file for file in files if file.endswith(".so")))
"""


def interpreter() -> Path:
    """The interpreter itself, without the virtual environment around it."""
    return Path(os.path.realpath(sys.executable))


def find_python_files(cache_dir: Path, programs: Iterable[Path] = ()) -> tuple[tuple[Path, str], ...]:
    """The files to bind read-only, ``(on the host, in the sandbox)``; ``programs`` are added with theirs."""
    key = _cache_key(programs)
    cache = cache_dir / "python-runtime.json"
    try:
        document = json.loads(cache.read_text())
        if document["key"] == key:
            return tuple((Path(source), target) for source, target in document["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no cache, or not one of ours: ask again
    files = _ask(programs)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        cache_dir.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "files": [(str(path), target) for path, target in files]}))
        fresh.replace(cache)
    return files


def _cache_key(programs: Iterable[Path]) -> list[str]:
    files = (interpreter(), *programs, PACKAGE / "controlling/drivers/block.py")
    return [str(PACKAGE), *(f"{path} {path.stat().st_mtime_ns}" for path in files)]


def _ask(programs: Iterable[Path]) -> tuple[tuple[Path, str], ...]:
    python = interpreter()
    script = [str(python), "-I", "-S", "-c", _FIND_EXTENSIONS, str(PACKAGE.parent)]
    extensions = process.run(script).split()
    binaries = [str(python), *map(str, programs), *extensions]
    libraries = set(re.findall(r"(?:=>\s+)?(/\S+\.so\S*) \(0x", process.run(["ldd", *binaries])))
    standard_library = Path(sysconfig.get_path("stdlib"))
    paths = {python, *programs, standard_library, *map(Path, libraries - {str(LOADER)})}
    files = [(path, _in_usr(path)) for path in sorted(paths)]
    files.append((LOADER, _in_usr(LOADER)))
    files += [
        (PACKAGE / part, f"{SANDBOX_PACKAGE}/duovisor/{part}")
        for part in DRIVER_CODE
        if (PACKAGE / part).exists()
    ]
    return tuple(files)


def _in_usr(path: Path) -> str:
    """Where the file lies with a merged /usr: /lib is a link to /usr/lib in the sandbox."""
    return f"/usr{path}" if path.parts[1] in ("lib", "lib64", "bin", "sbin") else str(path)
