"""Where guest memory lives: a tmpfs of our own for root, a private folder in /dev/shm for others."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from tests.unit.controlling.conftest import STRANGER, run_as_stranger

from duovisor.controlling import memory_folder
from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.memory_folder import open_memory_folder, remove_orphaned_memory


def may_mount() -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder, open_memory_folder(Path(folder)) as memory:
        return memory.is_relative_to(folder)


mounts = pytest.mark.skipif(not may_mount(), reason="this user or container may not mount a tmpfs")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /dev/shm, so that the real one stays as it is; nothing can be mounted."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(memory_folder, "SHARED_MEMORY", folder)
    monkeypatch.setattr(memory_folder, "_mount", lambda folder: None)
    return folder


@pytest.fixture
def as_tmpfs(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in counts as a tmpfs, the folders in it do not."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == shared)


@mounts
def test_root_gets_a_tmpfs_that_goes_with_its_last_use(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    with open_memory_folder(runtime) as first:
        assert first == runtime / "memory"
        assert os.path.ismount(first)
        assert os.statvfs(first).f_flag & (os.ST_NOEXEC | os.ST_NOSUID) == os.ST_NOEXEC | os.ST_NOSUID
        with open_memory_folder(runtime) as second:
            assert second == first
        assert os.path.ismount(first)
    assert not first.exists()
    assert runtime.is_dir()


@mounts
def test_the_mount_stays_while_another_vm_s_memory_is_there(tmp_path: Path) -> None:
    with open_memory_folder(tmp_path) as folder:
        (folder / "vm").write_bytes(b"x")
    assert (folder / "vm").read_bytes() == b"x"
    (folder / "vm").unlink()
    with open_memory_folder(tmp_path):
        assert os.path.ismount(folder)
    assert not folder.exists()


@mounts
def test_released_it_stays_for_who_adopts_the_vm(tmp_path: Path) -> None:
    use = open_memory_folder(tmp_path)
    use.release()
    assert os.path.ismount(use.path)
    with open_memory_folder(tmp_path) as folder:
        assert folder == use.path
    assert not folder.exists()


@mounts
def test_memory_without_a_run_folder_is_an_orphan(tmp_path: Path) -> None:
    use = open_memory_folder(tmp_path)
    for name in ("alive", "alive+0", "orphan"):
        (use.path / name).touch()
    use.release()
    (tmp_path / "vms/alive").mkdir(parents=True)
    assert remove_orphaned_memory(tmp_path, tmp_path / "vms") == [use.path / "orphan"]
    assert os.path.ismount(use.path)
    (tmp_path / "vms/alive").rmdir()
    left = remove_orphaned_memory(tmp_path, tmp_path / "vms")
    assert sorted(left) == [use.path / "alive", use.path / "alive+0"]
    assert not use.path.exists()


@pytest.mark.usefixtures("as_tmpfs")
def test_without_a_mount_it_is_a_private_folder(tmp_path: Path, shared: Path) -> None:
    with open_memory_folder(tmp_path / "one") as one, open_memory_folder(tmp_path / "two") as two:
        assert one.parent == two.parent == shared
        assert one != two  # names of VMs are unique only within one runtime folder
        assert one.name.startswith(f"duovisor-{os.geteuid()}-")
        assert one.stat().st_uid == os.geteuid()
    assert list(shared.iterdir()) == []


def test_without_any_tmpfs_the_remedy_is_told(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(HostLacksError, match=f"{shared} is none and another cannot be mounted"):
        open_memory_folder(tmp_path / "runtime")


@pytest.mark.usefixtures("as_tmpfs")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, shared: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    use = open_memory_folder(tmp_path / "runtime")
    use.release()
    os.chown(use.path, STRANGER, STRANGER)
    with pytest.raises(HostLacksError, match="belongs to somebody else"):
        open_memory_folder(tmp_path / "runtime")


def test_another_user_uses_dev_shm() -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")

    def use() -> None:
        with tempfile.TemporaryDirectory() as runtime:
            with open_memory_folder(Path(runtime)) as folder:
                assert folder.parent == Path("/dev/shm")
                assert folder.name.startswith(f"duovisor-{STRANGER}-")
            assert not folder.exists()

    run_as_stranger(use)
