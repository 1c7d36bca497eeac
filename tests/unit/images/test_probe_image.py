"""The probe image, built by fakes of the host's programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.unit.images.host_programs import write_host, write_kernel, write_program
from tests.unit.images.test_initramfs import read_archive

from duovisor.controlling.images import probe, store
from duovisor.controlling.images.errors import ImageBuildError
from duovisor.directories import Directories, find_directories
from duovisor.process import ProgramFailedError

GUEST = Path(probe.__file__).parent / "guest"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's programs; the fake ldd names a loader that lies in the test's folder."""
    write_kernel(tmp_path / "package")
    write_host(tmp_path / "bin", tmp_path / "package")
    (tmp_path / "loader").write_bytes(b"loader")
    write_program(tmp_path / "bin", "ldd", f'echo "  {tmp_path}/loader (0x00007f00)"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return find_directories({"DUOVISOR_STATE_DIR": str(tmp_path / "state")})


def build(directories: Directories, *, force: bool = False) -> list[str]:
    said: list[str] = []
    probe.build_probe_image(directories, said.append, force=force)
    return said


def test_image_has_kernel_initramfs_and_tools_disk(host: Path, directories: Directories) -> None:
    said = build(directories)
    image = store.load_image("probe", directories)
    assert image.kernel_path.read_bytes() == b"kernel"
    assert image.disks[0].serial == "duovisor-tools"
    assert image.disks[0].read_only
    assert store.find_damage(image) == []
    assert said[-1] == "writing it all to the disk"
    files = {record.path: record for record in read_archive(image.initrd_path.read_bytes())}
    order = files["modules/order"].data.decode().split()
    assert order[:3] == ["virtio_ring.ko", "virtio.ko", "virtio_pci.ko"]
    assert all(f"modules/{name}" in files for name in order)
    assert files["init"].data == (GUEST / "init").read_bytes()
    assert files["bin/sh"].data == b"busybox"


def test_a_second_build_has_nothing_to_do(host: Path, directories: Directories) -> None:
    assert build(directories)
    assert build(directories) == []
    assert build(directories, force=True)


def test_an_image_of_another_recipe_is_built_again(host: Path, directories: Directories) -> None:
    build(directories)
    path = directories.images / "probe/image.json"
    path.write_text(path.read_text().replace(probe.compute_recipe(), "0" * 16))
    assert build(directories)


@pytest.mark.parametrize("program", ["dpkg-deb", "mke2fs", "busybox", "ldd"])
def test_failure_of_any_program_leaves_nothing(host: Path, directories: Directories, program: str) -> None:
    write_program(host, program, "exit 1")
    with pytest.raises((ImageBuildError, ProgramFailedError)):
        build(directories)
    assert os.listdir(directories.images) == [".lock"]


def test_dynamic_busybox_is_refused(host: Path, directories: Directories) -> None:
    (host / "busybox").write_bytes(b"\x7fELF" + bytes(100) + b"/lib64/ld-linux-x86-64.so.2\0")
    with pytest.raises(ImageBuildError, match="not a static program"):
        build(directories)


def test_busybox_without_an_applet_is_refused(host: Path, directories: Directories) -> None:
    write_program(host, "busybox", "echo sh mount")
    with pytest.raises(ImageBuildError, match=r"lacks .*udhcpc"):
        build(directories)


@pytest.mark.parametrize("program", ["busybox", "fio"])
def test_missing_program_is_named_with_its_package(
    host: Path, directories: Directories, program: str
) -> None:
    (host / program).unlink()
    with pytest.raises(ImageBuildError, match=f"{program} is not installed") as caught:
        build(directories)
    assert caught.value.remedy.startswith(f"apt-get install {program}")


@pytest.mark.parametrize("script", sorted(path.name for path in GUEST.iterdir()))
def test_guest_scripts_are_sound_shell(script: str) -> None:
    subprocess.run(["/bin/sh", "-n", str(GUEST / script)], check=True)
