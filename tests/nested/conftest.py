"""The nested test's one run: an outer guest that is a KVM host, in which both designs run."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.nested.outer_disk import Release, build_outer_disk, parse_release
from tests.nested.outer_guest import Reports, run_outer_guest
from tests.nested.payload import build_payload

from duovisor.controlling.images.debian import DISK, build_debian
from duovisor.controlling.images.probe import build_probe_image
from duovisor.directories import find_directories

if TYPE_CHECKING:
    from collections.abc import Generator

DEADLINE_S = 1200.0  # a run takes 160 s on two processors that have nothing else to do
LONG, DEBIAN_DEADLINE_S = bool(os.environ.get("DUOVISOR_LONG")), 3600.0
DEBIAN = "debian.raw"
PROGRAMS = ("mmdebstrap", "mke2fs", "qemu-system-x86_64", "setpriv", "unshare")
FOLDER = pytest.StashKey[Path]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say under each failure where the guest's console, logs and command lines are."""
    report = yield
    if report.failed and FOLDER in item.config.stash:
        report.sections.append(("nested guest", f"logs and command lines are in {item.config.stash[FOLDER]}"))
    return report


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Reports:
    """What the outer guest reported of its one run with both designs in it."""
    release = find_release()
    directories = find_directories()
    outer = build_outer_disk(directories.cache, release)
    image = build_probe_image(directories, print)
    folder = pytestconfig.stash[FOLDER] = tmp_path_factory.mktemp("nested")
    payload = folder / "payload.ext4"
    try:
        build_payload(payload, image, outer.python_version)
        debian = build_debian_disk(folder) if LONG else None
        deadline_s = DEADLINE_S + (DEBIAN_DEADLINE_S if LONG else 0)
        return asyncio.run(run_outer_guest(outer, payload, folder, deadline_s=deadline_s, debian=debian))
    finally:
        for path in (payload, folder / DEBIAN):
            path.unlink(missing_ok=True)


def build_debian_disk(folder: Path) -> Path:
    """Debian's image, as ``duovisor image build debian-12`` makes it."""
    making = folder / "debian"
    making.mkdir()
    build_debian(making, print)
    (making / DISK).rename(folder / DEBIAN)
    shutil.rmtree(making)
    return folder / DEBIAN


def find_release() -> Release:
    """The release that the outer guest is made of; skips where one cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("the outer guest's disk is installed by root")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    release = parse_release(Path("/etc/os-release").read_text(), os.environ)
    if release is None:
        pytest.skip("the outer guest is made of the host's own release, which must be a Debian or Ubuntu")
    return release
