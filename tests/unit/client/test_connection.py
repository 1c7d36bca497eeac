"""A reply that breaks off, as when the service is killed while it answers, never looks like an answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from duovisor.client.connection import Connection
from duovisor.client.endpoint import Endpoint
from duovisor.client.errors import ConnectionLostError

if TYPE_CHECKING:
    from pathlib import Path

HEAD = b"HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n"


@pytest.mark.parametrize("reply", [b"", HEAD[:9], HEAD[:20], HEAD[:30], HEAD, HEAD + b'{"half": '])
def test_a_reply_that_breaks_off(tmp_path: Path, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        connection = Connection(Endpoint(tmp_path / "s"))
        with pytest.raises(ConnectionLostError):
            connection.request("POST", "/v1/vms")
        thread.join()
