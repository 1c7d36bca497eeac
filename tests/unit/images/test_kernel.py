"""Where the guest's kernel comes from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.unit.images.host_programs import RELEASE, write_host, write_kernel, write_program

from duovisor.controlling.images import kernel
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.process import ProgramFailedError

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = """\
Package: linux-image-cloud-amd64
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud
"""
UBUNTU = """\
Package: linux-image-6.8.0-31-generic
Depends: kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-31-generic
Recommends: grub-pc | grub-efi-amd64, linux-modules-extra-6.8.0-31-generic
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_kernel(tmp_path / "package")
    write_host(tmp_path / "bin", tmp_path / "package")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "scratch").mkdir()
    return tmp_path


def test_parts_of_a_debian_kernel() -> None:
    assert kernel.parse_kernel_parts(DEBIAN) == ["linux-image-6.1.0-56-cloud-amd64"]


def test_parts_of_an_ubuntu_kernel() -> None:
    assert kernel.parse_kernel_parts(UBUNTU) == ["linux-modules-6.8.0-31-generic"]


def test_package_is_downloaded_and_unpacked(host: Path) -> None:
    said: list[str] = []
    found = kernel.find_kernel(host / "scratch", said.append)
    assert found.release == RELEASE
    assert found.image.read_bytes() == b"kernel"
    assert found.source == "package linux-image-6.9.1-cloud-amd64"
    assert said == ["downloading linux-image-6.9.1-cloud-amd64", "unpacking linux-image-6.9.1_amd64.deb"]


def test_modules_under_usr_are_found(tmp_path: Path) -> None:
    write_kernel(tmp_path, modules="usr/lib/modules")
    assert kernel.find_unpacked_kernel(tmp_path, source="x").modules == tmp_path / "usr/lib/modules" / RELEASE


def test_a_failed_download_leads_to_the_hosts_kernel(host: Path) -> None:
    write_program(host / "bin", "apt-get", "echo 'E: no network' >&2; exit 100")
    release = os.uname().release
    (host / "boot").mkdir()
    (host / f"boot/vmlinuz-{release}").write_bytes(b"own")
    (host / "lib/modules" / release).mkdir(parents=True)
    said: list[str] = []
    found = kernel.find_kernel(host / "scratch", said.append, root=host)
    assert found.image.read_bytes() == b"own"
    assert "no network" in " ".join(said)


def test_neither_source_is_one_clear_error(host: Path) -> None:
    (host / "bin/apt-get").unlink()
    with pytest.raises(ImageBuildError, match=r"apt-get is not there; .*lib/modules/.* does not exist"):
        kernel.find_kernel(host / "scratch", lambda line: None, root=host)


def test_apt_that_knows_no_kernel_says_so(host: Path) -> None:
    write_program(host / "bin", "apt-cache", "exit 100")
    with pytest.raises(ImageBuildError, match="apt knows none of linux-image-cloud-amd64"):
        kernel.download_kernel(host / "scratch", lambda line: None)


def test_download_error_keeps_apts_words(host: Path) -> None:
    write_program(host / "bin", "apt-get", "echo 'E: disk full' >&2; exit 100")
    with pytest.raises(ProgramFailedError, match="disk full"):
        kernel.download_kernel(host / "scratch", lambda line: None)


@pytest.mark.parametrize(("uid", "tries"), [(0, 2), (1000, 1)])
def test_root_refreshes_the_package_lists_once(
    host: Path, monkeypatch: pytest.MonkeyPatch, uid: int, tries: int
) -> None:
    calls = host / "calls"
    write_program(host / "bin", "apt-get", f'echo "$*" >>"{calls}"; exit 100')
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(ProgramFailedError):
        kernel.download_kernel(host / "scratch", lambda line: None)
    lines = calls.read_text().splitlines()
    assert sum("download" in line for line in lines) == tries
    assert ("-qq update" in lines) is (uid == 0)


def test_fresh_lists_make_the_second_download_work(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(
        host / "bin",
        "apt-get",
        f'[ "$2" = update ] && touch "{host}/fresh" && exit 1\n'
        f'[ -e "{host}/fresh" ] || exit 100\ntouch linux-image-6.9.1_amd64.deb',
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert kernel.download_kernel(host / "scratch", lambda line: None).release == RELEASE


def test_host_kernel_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match=r"lib/modules/1\.2\.3 does not exist"):
        kernel.find_host_kernel("1.2.3", root=tmp_path)


def test_host_kernel_without_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lib/modules/1.2.3").mkdir(parents=True)
    with pytest.raises(ImageBuildError, match=r"boot/vmlinuz-1\.2\.3 does not exist"):
        kernel.find_host_kernel("1.2.3", root=tmp_path)
