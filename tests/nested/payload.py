"""The payload disk: the project as it is now, the packages it needs, the probe image; new for each run."""

from __future__ import annotations

import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from tests.nested.ext4_disk import build_ext4_disk
from tests.nested.outer_disk import IN_GUEST

import duovisor
from duovisor import process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.controlling.images.image import Image

ROOT = Path(__file__).parents[2]
PROJECT, UNIT = ROOT / "pyproject.toml", ROOT / "packaging/duovisord.service"
DOWNLOAD_TIMEOUT_S = 120.0


def build_payload(disk: Path, image: Image, python_version: tuple[int, int]) -> None:
    """Write the payload disk for an outer guest with this Python.

    Raises ``ProcessError``; needs the network only where the guest's Python is not of the host's version.
    """
    content = disk.with_suffix(".content")
    try:
        python = content / "python"
        shutil.copytree(Path(duovisor.__file__).parent, python / "duovisor")
        # the tree's own word: what is installed may have been so before a dependency came
        project = tomllib.loads(PROJECT.read_text())["project"]
        needed = find_needed(project["dependencies"])
        for distribution in needed:
            copy_distribution(distribution, python)
        if python_version != sys.version_info[:2]:
            fetch_binaries(needed, python_version, python)
        shutil.copytree(image.folder, content / "state/images" / image.name)
        for name in ("run", "steps.py", "thin_steps.py", "debian_steps.py", "service_steps.py"):
            shutil.copyfile(IN_GUEST / name, content / name)
        shutil.copyfile(UNIT, content / UNIT.name)
        build_ext4_disk(disk, content)
    finally:
        shutil.rmtree(content, ignore_errors=True)


def find_needed(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """Every installed distribution that ``requirements`` need at run time, themselves included."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name not in found:
            found[requirement.name] = metadata.distribution(requirement.name)
            waiting += found[requirement.name].requires or ()
    return list(found.values())


def copy_distribution(distribution: metadata.Distribution, target: Path) -> None:
    """Copy a distribution's files, times and compiled code too, but none that lies elsewhere (commands)."""
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if ".." not in file.parts and source.is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / file)


def fetch_binaries(
    distributions: Iterable[metadata.Distribution], python_version: tuple[int, int], target: Path
) -> None:
    """Put the same versions for another Python in the place of those that hold machine code."""
    binary = [
        f"{distribution.name}=={distribution.version}"
        for distribution in distributions
        if any(file.suffix == ".so" for file in distribution.files or ())
    ]
    version = ".".join(map(str, python_version))
    process.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", str(target),
         "--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
         "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64", *binary],
        timeout_s=DOWNLOAD_TIMEOUT_S,
    )  # fmt: skip
