"""What is missing is named at once, with its package, before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.comparison.errors import SkippedError
from duovisor.comparison.needed import ALWAYS, PROBE_IMAGE, check_programs
from duovisor.comparison.plan import QUICK
from duovisor.controlling.errors import HostLacksError
from duovisor.directories import Directories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def find_all_but(*missing: str) -> Callable[[str], str | None]:
    return lambda program: None if program in missing else f"/usr/bin/{program}"


def build_folders(tmp_path: Path) -> Directories:
    return Directories(state=tmp_path / "state", runtime=tmp_path / "run", cache=tmp_path / "cache")


def test_a_host_with_everything(tmp_path: Path) -> None:
    check_programs(QUICK, build_folders(tmp_path), None, find_all_but())


@pytest.mark.parametrize(("program", "package"), [*ALWAYS.items(), *PROBE_IMAGE.items()])
def test_one_that_is_missing_is_named_with_its_package(tmp_path: Path, program: str, package: str) -> None:
    with pytest.raises(HostLacksError) as caught:
        check_programs(QUICK, build_folders(tmp_path), None, find_all_but(program))
    assert caught.value.message == f"not installed: {program}"
    assert caught.value.remedy.endswith(f" {package}")


def test_all_that_are_missing_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(HostLacksError) as caught:
        check_programs(
            QUICK, build_folders(tmp_path), None, find_all_but("bwrap", "fio", "busybox", "mke2fs")
        )
    assert caught.value.message == "not installed: bwrap, mke2fs, busybox, fio"
    assert caught.value.remedy.endswith(" bubblewrap e2fsprogs busybox-static fio")


def test_another_image_needs_no_programs_for_the_probe_s(tmp_path: Path) -> None:
    scale = QUICK.model_copy(update={"image": "other"})
    check_programs(scale, build_folders(tmp_path), None, find_all_but("fio", "busybox"))


def test_who_cannot_have_a_bridge_needs_the_way_without_one(tmp_path: Path) -> None:
    problem = SkippedError("bridges and TAPs need root")
    check_programs(QUICK, build_folders(tmp_path), None, find_all_but("passt"))
    with pytest.raises(HostLacksError, match="not installed: passt"):
        check_programs(QUICK, build_folders(tmp_path), problem, find_all_but("passt"))
