"""Files to the service and from it, as the body of a request or of a reply."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from typing import TYPE_CHECKING, Any

from duovisor.client.connection import HTTP_ERROR, build_api_error, build_headers
from duovisor.client.errors import ConnectionLostError, ReplyError, TransferError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from duovisor.client.service import ServiceClient

    Show = Callable[[int, int], None]

BLOCK_BYTES = 1 << 20
REPLY_MAX_BYTES = 1 << 20


def send_file(client: ServiceClient, path: str, file: Path, show: Show) -> dict[str, Any]:
    """Send a file as the body of a PUT; returns the operation. ``show`` gets bytes sent, and of how many.

    Raises ``TransferError``, ``ApiError`` or ``ConnectionLostError``.
    """
    client.get("/v1/health")  # starts the service if it is absent, and ends in an error if it is not there
    try:
        with file.open("rb") as opened:
            size_bytes = os.fstat(opened.fileno()).st_size
            response, content = _put(client, path, opened, size_bytes, show)
    except OSError as error:
        raise TransferError(f"cannot read {file}: {error.strerror}") from error
    if response.status >= HTTP_ERROR:
        raise build_api_error(response.status, content)
    operation: dict[str, Any] = json.loads(content)
    return operation


def _put(
    client: ServiceClient, path: str, opened: IO[bytes], size_bytes: int, show: Show
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = client.open_connection()
    try:
        connection.putrequest("PUT", path)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        for key, value in {**headers, **build_headers(client.endpoint)}.items():
            connection.putheader(key, value)
        try:
            connection.endheaders()
            sent = 0
            while sent < size_bytes and (block := opened.read(min(BLOCK_BYTES, size_bytes - sent))):
                connection.send(block)
                sent += len(block)
                show(sent, size_bytes)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it wants no more, and has said why
        response = connection.getresponse()
        return response, response.read(REPLY_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionLostError(
            f"{client.endpoint} went away before it answered", remedy="see what was done, then try again"
        ) from error
    finally:
        connection.close()


def fetch_file(client: ServiceClient, path: str, file: Path, sha256: str, show: Show) -> int:
    """Write the body of a reply to a file, which appears when it is whole; returns its size in bytes.

    Raises ``TransferError`` for another checksum or a file that cannot be written, ``ApiError``,
    ``ConnectionLostError`` or ``ReplyError``.
    """
    connection = client.open_connection()
    half = file.with_name(f".{file.name}.half-{os.getpid()}")
    try:
        connection.request("GET", path, headers=build_headers(client.endpoint))
        response = connection.getresponse()
        if response.status >= HTTP_ERROR:
            raise build_api_error(response.status, response.read(REPLY_MAX_BYTES))
        if response.length is None:
            raise ReplyError("the service does not say how long the file is")
        size_bytes = response.length
        found = _save(response, half, size_bytes, show)
        if found != sha256:
            raise TransferError(f"what came has the sha256 {found}, not {sha256}", remedy="try again")
        half.replace(file)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionLostError(f"{client.endpoint} went away", remedy="try again") from error
    except OSError as error:
        raise TransferError(f"cannot write {file}: {error.strerror}") from error
    finally:
        connection.close()
        half.unlink(missing_ok=True)
    return size_bytes


def _save(response: http.client.HTTPResponse, half: Path, size_bytes: int, show: Show) -> str:
    digest, done = hashlib.sha256(), 0
    with half.open("wb") as target:
        while block := response.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if block.count(0) == len(block):
                target.seek(done)  # a hole
            else:
                target.write(block)
            show(done, size_bytes)
        target.truncate(done)
    if done != size_bytes:
        raise http.client.IncompleteRead(b"", size_bytes - done)
    return digest.hexdigest()
