"""uvicorn, told to listen on sockets that are open already and to leave signals alone."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import uvicorn

from duovisor.controlling.service.errors import ListenError
from duovisor.controlling.service.peer import PeerProtocol

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from fastapi import FastAPI

    from duovisor.controlling.service.config import HttpsConfig

KEEP_ALIVE_S = 75
STOP_S = 3
MAX_CONNECTIONS = 512
MAX_TYPED_BYTES = 64 << 10  # in one message to a console


class HttpServer(uvicorn.Server):
    """One listener; ``ready`` is set once it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The service handles them: it has more than one listener."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def build_uvicorn_config(app: FastAPI, https: HttpsConfig | None) -> uvicorn.Config:
    """How uvicorn serves the application. Raises ``ListenError`` for a certificate that cannot be used."""
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        ws="websockets-sansio",
        ws_max_size=MAX_TYPED_BYTES,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody is believed about another's address
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        ssl_certfile=https.certificate if https else None,
        ssl_keyfile=https.key if https else None,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:  # SSLError is an OSError too; named for the reader
        assert https is not None
        reason = getattr(error, "reason", None) or error.strerror
        raise ListenError(
            f"cannot use certificate {https.certificate} and key {https.key}: {reason}"
        ) from error
    return config


@contextlib.asynccontextmanager
async def start_http(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    """Answer on a socket; on leaving, let the requests under way end, for a few seconds at most."""
    server = HttpServer(config)
    task = asyncio.create_task(server.serve([listener]))
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield
    finally:
        ready.cancel()
        server.should_exit = True
        await task
