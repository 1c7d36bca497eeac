"""The Debian recipe: what is decided without a program being run, and what a host lacks."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from uuid import UUID

import pytest

from duovisor.controlling.images import debian, grub
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.controlling.images.system_disk import CORE_SECTOR, build_identity

TARGETS = """\
http://mirror.test/debian/ bookworm Debian main
http://mirror.test/debian/ bookworm Debian main
http://mirror.test/debian/ bookworm Debian contrib
http://mirror.test/security/ bookworm-security Debian main
http://other.test/ubuntu/ bookworm Other main
http://mirror.test/debian/ trixie Debian main
"""


def test_sources_are_the_hosts_own_of_the_release() -> None:
    assert debian.parse_sources(TARGETS) == (
        "deb http://mirror.test/debian/ bookworm main",
        "deb http://mirror.test/security/ bookworm-security main",
    )


def test_a_host_of_another_release_gives_no_sources() -> None:
    assert debian.parse_sources(TARGETS.replace("/ bookworm ", "/ trixie ")) == ()
    assert debian.parse_sources("") == ()


def test_the_command_names_every_package_and_source() -> None:
    argv = debian.build_mmdebstrap_argv(Path("/s/root"), ["deb http://mirror.test/ bookworm main"])
    assert argv[-3:] == ("bookworm", "/s/root", "deb http://mirror.test/ bookworm main")
    included = next(word for word in argv if word.startswith("--include="))
    assert {"cloud-init", "qemu-guest-agent", "openssh-server"} <= set(included[10:].split(","))


def test_every_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("mcopy", "mkfs.vfat") else name)
    with pytest.raises(ImageBuildError) as caught:
        debian.check_host()
    assert caught.value.message == "missing on this host: dosfstools, mtools"
    assert caught.value.remedy == "apt-get install dosfstools mtools"


def test_only_root_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageBuildError, match="by root only"):
        debian.check_host()


def test_an_identity_is_the_same_in_each_build() -> None:
    first = build_identity("debian-12")
    assert first == build_identity("debian-12")
    assert len({*first, *build_identity("other")}) == 8
    assert str(first.root) in debian.build_command_line()


def test_the_boot_sector_leads_to_the_core_image() -> None:
    boot = bytes(range(256)) + bytes(254) + b"\x55\xaa"
    code = grub.build_boot_code(boot, CORE_SECTOR)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C)[0] == CORE_SECTOR
    assert code[:0x5C] == boot[:0x5C]
    core = grub.build_core(bytes(2000), CORE_SECTOR, 4096)
    assert struct.unpack_from("<Q", core, 512 - 12)[0] == CORE_SECTOR + 1


@pytest.mark.parametrize("size", [512, 5000])
def test_a_core_image_without_room_is_refused(size: int) -> None:
    with pytest.raises(ImageBuildError, match="are there for it"):
        grub.build_core(bytes(size), CORE_SECTOR, 4096)


def test_what_is_no_boot_sector_is_refused() -> None:
    with pytest.raises(ImageBuildError, match="not a boot sector"):
        grub.build_boot_code(bytes(512), CORE_SECTOR)


def test_both_programs_look_for_the_same_file_system() -> None:
    root = UUID(int=7)
    assert f"search.fs_uuid {root}" in grub.build_early_config(root)
    assert f"root=UUID={root} ro quiet" in grub.build_menu(root, "quiet")
