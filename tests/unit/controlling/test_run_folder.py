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
from duovisor.controlling.run_folder import has_owner, open_run_folder

if TYPE_CHECKING:
    from pathlib import Path

OWNER = """
import sys
from pathlib import Path
from duovisor.controlling.run_folder import open_run_folder
with open_run_folder(Path(sys.argv[1]), "vm") as folder:
    (folder / "left").write_text("behind")
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
        with open_run_folder(Path(sys.argv[1]), "vm") as folder:
            assert not list(folder.iterdir()), "not empty"
            mark = folder / str(os.getpid())
            mark.touch()
            assert [each.name for each in folder.iterdir()] == [mark.name], "not alone"
            owned += 1
    except NameInUseError:
        pass
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
        (folder / "sub").mkdir()
        (folder / "sub/file").touch()
        (folder / "link").symlink_to("/")
    assert not folder.exists()
    assert not has_owner(folder)


def test_an_error_inside_removes_it_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_run_folder(tmp_path, "vm") as folder:
        raise KeyError
    assert not folder.exists()


def test_two_owners(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, "vm") as folder:
        (folder / "file").touch()
        with (
            pytest.raises(NameInUseError, match="a VM named 'vm' runs already"),
            open_run_folder(tmp_path, "vm"),
        ):
            pass
        assert (folder / "file").exists()
        with open_run_folder(tmp_path, "other"):
            pass


def test_a_killed_owner_s_folder_is_taken_over_empty(tmp_path: Path) -> None:
    owner = start_owner(tmp_path)
    assert has_owner(tmp_path / "vm")
    with pytest.raises(NameInUseError), open_run_folder(tmp_path, "vm"):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert (tmp_path / "vm/left").read_text() == "behind"
    assert not has_owner(tmp_path / "vm")
    with open_run_folder(tmp_path, "vm") as folder:
        assert list(folder.iterdir()) == []


def test_many_want_it_at_once(tmp_path: Path) -> None:
    contenders = [start(CONTENDER, tmp_path) for _ in range(6)]
    outcomes = [contender.communicate(timeout=60) for contender in contenders]
    assert [errors for _, errors in outcomes] == [""] * len(contenders)
    assert sum(int(output) for output, _ in outcomes) >= len(contenders)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "vms").touch()
    with pytest.raises(ControllingError) as caught, open_run_folder(tmp_path / "vms", "vm"):
        pass
    assert str(tmp_path / "vms" / "vm") in caught.value.message
    assert caught.value.remedy == "set DUOVISOR_RUNTIME_DIR"


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_run_folder(tmp_path, "vm"):
        with pytest.raises(NameInUseError), open_run_folder(tmp_path, "vm"):
            pass
        has_owner(tmp_path / "vm")
    assert len(os.listdir("/proc/self/fd")) == before
