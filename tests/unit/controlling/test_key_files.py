"""Key files: what is refused, and that the key goes past this process's memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.errors import KeyFileError
from duovisor.controlling.key_files import KEY_MEMORY, create_key, open_key

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "disk.key"
    create_key(path)
    return path


def test_a_key_is_copied_and_sealed(key: Path) -> None:
    content = key.read_bytes()
    with open_key(str(key)) as descriptor:
        key.write_bytes(bytes(64))
        assert os.pread(descriptor, 100, 0) == content
        assert os.readlink(f"/proc/self/fd/{descriptor}").startswith(KEY_MEMORY)
        assert not os.get_inheritable(descriptor)
        for change in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, 1)):
            with pytest.raises(PermissionError):
                change()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o610])
def test_one_that_others_may_open_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=f"is open to others than its owner \\(mode {mode:04o}\\)") as told:
        with open_key(str(key)):
            pass
    assert told.value.remedy == f"chmod 600 {key}"


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_one_of_another_size_is_refused(key: Path, size: int) -> None:
    key.write_bytes(bytes(size))
    with pytest.raises(KeyFileError, match=f"has {size} bytes; a key has 64"), open_key(str(key)):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_another_users_is_refused(key: Path) -> None:
    os.chown(key, 54321, 54321)
    with (
        pytest.raises(KeyFileError, match="belongs to user 54321; the service runs as user 0"),
        open_key(str(key)),
    ):
        pass


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, said in (
        (pipe, "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / "none", "cannot read"),
    ):
        with pytest.raises(KeyFileError, match=said), open_key(str(path)):
            pass


def test_a_new_one_is_written_where_there_is_none(key: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="exists; a disk may depend on it"):
        create_key(key)
    with pytest.raises(KeyFileError, match="cannot write key file"):
        create_key(tmp_path / "no" / "folder")
