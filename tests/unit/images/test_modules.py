"""The order in which a kernel's modules are loaded."""

from __future__ import annotations

import gzip
import lzma
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.unit.images.host_programs import RELEASE, make_module, write_kernel

from duovisor import process
from duovisor.controlling.images import modules
from duovisor.controlling.images.errors import ImageBuildError

if TYPE_CHECKING:
    from pathlib import Path


def make_tree(folder: Path, depends: dict[str, str]) -> Path:
    write_kernel(folder, depends=depends)
    return folder / "lib/modules" / RELEASE


def names(tree: Path, *wanted: str) -> list[str]:
    return [module.name for module in modules.resolve_modules(tree, wanted)]


def test_dependencies_come_first_and_once(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a": "b,c", "b": "c", "c": "", "d": "c"})
    assert names(tree, "a", "d") == ["c", "b", "a", "d"]


def test_built_in_is_skipped(tmp_path: Path) -> None:
    assert names(make_tree(tmp_path, {"a": ""}), "ext4", "a") == ["a"]


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    assert names(make_tree(tmp_path, {"virtio_pci": ""}), "virtio-pci") == ["virtio_pci"]


def test_unknown_module_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match=f"{RELEASE} has no module zfs"):
        names(make_tree(tmp_path, {}), "zfs")


def test_soft_dependencies_load_where_they_exist_and_cycles_end(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"hash": "a"})
    (tree / "kernel/a.ko").write_bytes(make_module("", soft="hash gone post: later"))
    assert names(tree, "a") == ["hash", "a"]


def test_first_entry_of_the_section_counts() -> None:
    assert modules.parse_dependencies(b"\0\1depends=x-y,z\0name=a\0") == (["x_y", "z"], [])


def test_a_parameter_that_speaks_of_depends_does_not_count() -> None:
    assert modules.parse_dependencies(b"\0parm=mode: see depends=q\0depends=\0") == ([], [])


def test_compressed_modules_are_read(tmp_path: Path) -> None:
    content = make_module("x")
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(content))
    (tmp_path / "b.ko.gz").write_bytes(gzip.compress(content))
    assert modules.read_module(tmp_path / "a.ko.xz") == content
    assert modules.read_module(tmp_path / "b.ko.gz") == content
    assert set(modules.find_module_files(tmp_path)) == {"a", "b"}


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program makes the module of this test")
def test_zstd_modules_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(make_module("x"))
    process.run(["zstd", "-q", "--rm", str(tmp_path / "a.ko")])
    assert modules.read_module(tmp_path / "a.ko.zst") == make_module("x")
