"""The run folder: one owner, whoever is killed and however many want it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.errors import ControllingError, NameInUseError
from duovisor.controlling.run_folder import has_owner, list_run_folders, open_run_folder

if TYPE_CHECKING:
    from pathlib import Path

OWNER = """
import sys
from pathlib import Path
from duovisor.controlling.run_folder import open_run_folder
folder = open_run_folder(Path(sys.argv[1]), "vm")
(folder.path / "left").write_text("behind")
print("owns", flush=True)
sys.stdin.read()
"""

# each contender owns the folder again and again and checks that it is alone in it
CONTENDER = """
import os, sys
from pathlib import Path
from duovisor.controlling.errors import NameInUseError
from duovisor.controlling.run_folder import open_run_folder
owned = 0
for _ in range(300):
    try:
        folder = open_run_folder(Path(sys.argv[1]), "vm")
    except NameInUseError:
        continue
    assert not list(folder.path.iterdir()), "not empty"
    mark = folder.path / str(os.getpid())
    mark.touch()
    assert [each.name for each in folder.path.iterdir()] == [mark.name], "not alone"
    folder.remove()
    owned += 1
print(owned)
"""


def start(script: str, vms: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(vms)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_owner(vms: Path) -> subprocess.Popen[str]:
    owner = start(OWNER, vms)
    assert owner.stdout is not None
    assert select.select([owner.stdout], [], [], 10)[0]
    assert owner.stdout.readline() == "owns\n"
    return owner


def test_made_owned_and_removed(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    with open_run_folder(vms, "vm") as folder:
        assert folder == vms / "vm"
        assert has_owner(folder)
        assert list_run_folders(vms) == ["vm"]
        (folder / "sub").mkdir()
        (folder / "sub/file").touch()
        (folder / "link").symlink_to("/")
    assert not folder.exists()
    assert not has_owner(folder)
    assert list_run_folders(vms) == list_run_folders(tmp_path / "none") == []


def test_released_it_stays_for_the_next_owner(tmp_path: Path) -> None:
    folder = open_run_folder(tmp_path, "vm")
    (folder.path / "file").touch()
    folder.release()
    assert not has_owner(folder.path)
    with open_run_folder(tmp_path, "vm") as path:
        assert (path / "file").exists()


def test_two_owners(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, "vm") as folder:
        (folder / "file").touch()
        with pytest.raises(NameInUseError, match="a VM named 'vm' runs already"):
            open_run_folder(tmp_path, "vm")
        assert (folder / "file").exists()
        with open_run_folder(tmp_path, "other"):
            assert list_run_folders(tmp_path) == ["other", "vm"]


def test_a_killed_owner_s_folder_is_taken_over(tmp_path: Path) -> None:
    owner = start_owner(tmp_path)
    assert has_owner(tmp_path / "vm")
    with pytest.raises(NameInUseError):
        open_run_folder(tmp_path, "vm")
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert not has_owner(tmp_path / "vm")
    with open_run_folder(tmp_path, "vm") as folder:
        assert (folder / "left").read_text() == "behind"  # what it describes is adopted or undone first


def test_many_want_it_at_once(tmp_path: Path) -> None:
    contenders = [start(CONTENDER, tmp_path) for _ in range(6)]
    outcomes = [contender.communicate(timeout=60) for contender in contenders]
    assert [errors for _, errors in outcomes] == [""] * len(contenders)
    assert sum(int(output) for output, _ in outcomes) >= len(contenders)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "vms").touch()
    (tmp_path / "vm").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for vms, name in ((tmp_path / "vms", "vm"), (tmp_path, "vm"), (tmp_path, "dangling")):
        with pytest.raises(ControllingError) as caught:
            open_run_folder(vms, name)
        assert f"cannot make the run folder {vms / name}" in caught.value.message
        assert caught.value.remedy == "set DUOVISOR_RUNTIME_DIR"


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_run_folder(tmp_path, "vm"):
        with pytest.raises(NameInUseError):
            open_run_folder(tmp_path, "vm")
        has_owner(tmp_path / "vm")
    assert len(os.listdir("/proc/self/fd")) == before
