"""A folder that the VMM may write to leads nowhere else."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.channel_socket import connect_channel

if TYPE_CHECKING:
    from pathlib import Path


def test_it_connects_to_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "nic0.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with connect_channel(path) as channel, listener.accept()[0] as accepted:
            channel.send(b"x")
            assert accepted.recv(1) == b"x"


def test_it_follows_no_link(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        path = tmp_path / "nic0.sock"
        path.symlink_to(tmp_path / "other.sock")
        with pytest.raises(FileNotFoundError, match="is no socket"):
            connect_channel(path)


def test_who_does_not_listen_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "nic0.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        with pytest.raises(ConnectionRefusedError):
            connect_channel(path)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        connect_channel(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        connect_channel(tmp_path / "none")
