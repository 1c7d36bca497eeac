"""Where the service is: a Unix socket of this host, or an HTTPS address with a token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from duovisor.client.errors import EndpointError
from duovisor.directories import find_directories

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME = "duovisord.sock"
SYSTEM_SOCKET = Path("/run/duovisor") / SOCKET_NAME
DEFAULT_PORT = 8443
_RUNTIME_VARIABLE = "DUOVISOR_RUNTIME_DIR"
_EXAMPLES = "for example https://host:8443 or unix:///run/duovisor/duovisord.sock"


class Endpoint(NamedTuple):
    """``socket`` is set for a Unix socket, ``host`` and ``port`` for HTTPS; ``certificate`` is a PEM file to
    trust beside the system's. ``is_default``: nobody named it, so that a service may be started there.
    """

    socket: Path | None = None
    host: str = ""
    port: int = DEFAULT_PORT
    token: str | None = None
    certificate: Path | None = None
    is_default: bool = False

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket else f"https://{self.host}:{self.port}"


def find_endpoint(
    url: str | None = None,
    token_file: Path | None = None,
    certificate: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Endpoint:
    """The service that options and environment mean; without any, the one of this host.

    Members of the group ``duovisor`` get the system's service, other users their own. Raises
    ``EndpointError``.
    """
    environ = os.environ if environ is None else environ
    url = url or environ.get("DUOVISOR_HOST")
    token = _read_token(token_file) if token_file else environ.get("DUOVISOR_TOKEN")
    if url:
        return parse_url(url, token, certificate)
    own = find_directories(environ).runtime / SOCKET_NAME
    if _RUNTIME_VARIABLE not in environ and own != SYSTEM_SOCKET and os.access(SYSTEM_SOCKET, os.W_OK):
        return Endpoint(SYSTEM_SOCKET, token=token)
    return Endpoint(own, token=token, is_default=True)


def parse_url(url: str, token: str | None = None, certificate: Path | None = None) -> Endpoint:
    """``unix:///PATH`` or ``https://HOST[:PORT]``. Raises ``EndpointError``."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise EndpointError(f"{url!r} is not an address: {error}", remedy=_EXAMPLES) from error
    if parts.scheme == "unix" and not parts.netloc and parts.path:
        return Endpoint(Path(parts.path), token=token)
    if parts.scheme == "http":
        raise EndpointError(f"{url!r} would send the token in clear text", remedy=_EXAMPLES)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise EndpointError(f"{url!r} is not the address of a service", remedy=_EXAMPLES)
    if not token:
        raise EndpointError(
            f"a token is needed for {url}", remedy="give --token-file FILE, or set DUOVISOR_TOKEN"
        )
    return Endpoint(None, parts.hostname, port or DEFAULT_PORT, token, certificate)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise EndpointError(f"cannot read the token file {path}: {reason}") from error
    if not token.isascii() or not token.isprintable() or not token:
        raise EndpointError(f"{path} holds no token", remedy="it must have the token as its only line")
    return token
