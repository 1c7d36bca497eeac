"""One connection to the service: an HTTP request, its reply as a JSON document, its refusal as an error."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor.client.errors import (
    ApiError,
    ConnectionLostError,
    EndpointError,
    ReplyError,
    ServiceUnreachableError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from duovisor.client.endpoint import Endpoint

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 60.0
MAX_REPLY_BYTES = 64 << 20
HTTP_ERROR = 400


class Call(NamedTuple):
    """One request, for ``--debug``; ``status`` 0 means that no reply came."""

    method: str
    path: str
    status: int
    took_ms: float


class Reply(NamedTuple):
    """What the service answered; ``document`` is None when there is no body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        if not self.body:
            return None
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ReplyError(f"the reply is not JSON: {error}") from error

    @property
    def etag(self) -> str:
        return self.headers.get("ETag", "*")


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("duovisord", timeout=REPLY_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = connect_unix(self._path)
        self.sock.settimeout(REPLY_TIMEOUT_S)


def connect_unix(path: str) -> socket.socket:
    """A connected socket; raises ``OSError``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def build_tls(endpoint: Endpoint) -> ssl.SSLContext:
    """How the service's certificate is checked: against the system's, or the one that was given."""
    import ssl

    try:
        return ssl.create_default_context(cafile=endpoint.certificate)
    except OSError as error:
        raise EndpointError(f"cannot use the certificate {endpoint.certificate}: {error}") from error


def build_headers(endpoint: Endpoint) -> dict[str, str]:
    """What every request says of who asks."""
    return {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}


class Connection:
    """Sends requests one after the other; ``observe`` is told of each."""

    def __init__(self, endpoint: Endpoint, observe: Callable[[Call], None] = lambda call: None) -> None:
        self.endpoint = endpoint
        self.observe = observe
        self._http: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """End the connection; the next request opens another."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def request(
        self, method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request and return the reply.

        Raises ``ApiError`` for a refusal, ``ServiceUnreachableError`` when nobody is there,
        ``ConnectionLostError`` when the answer did not come, ``ReplyError`` when it cannot be read.
        """
        started, status = time.monotonic(), 0
        try:
            reply = self._send(method, path, document, {**build_headers(self.endpoint), **(headers or {})})
            status = reply.status
        finally:
            self.observe(Call(method, path, status, (time.monotonic() - started) * 1000))
        if reply.status >= HTTP_ERROR:
            raise build_api_error(reply.status, reply.body)
        return reply

    def _send(self, method: str, path: str, document: Any, headers: dict[str, str]) -> Reply:
        body = None if document is None else json.dumps(document).encode()
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._http is not None and _has_ended(self._http):
            self.close()
        is_kept = self._http is not None
        connection = self._http or self._open()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_REPLY_BYTES)
            if _broke_off(response, content):
                raise http.client.IncompleteRead(content)
        except TimeoutError as error:
            self.close()
            raise ConnectionLostError(
                f"{self.endpoint} did not answer within {REPLY_TIMEOUT_S:g} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if is_kept and method == "GET":  # the service closed it while it was idle
                return self._send(method, path, document, headers)
            raise ConnectionLostError(
                f"{self.endpoint} went away before it answered",
                remedy="see what was done, then try again",
            ) from error
        if response.will_close:
            self.close()
        return Reply(response.status, response.headers, content)

    def _open(self) -> http.client.HTTPConnection:
        self._http = self.open_another()
        return self._http

    def open_another(self) -> http.client.HTTPConnection:
        """Connect now, so that a failure to connect is known from a lost answer; the caller closes it.

        Raises ``ServiceUnreachableError``.
        """
        endpoint = self.endpoint
        connection: http.client.HTTPConnection
        if endpoint.socket is not None:
            connection = UnixConnection(str(endpoint.socket))
        else:
            connection = http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=CONNECT_TIMEOUT_S, context=build_tls(endpoint)
            )
        try:
            connection.connect()
        except OSError as error:
            raise describe_refusal(endpoint, error) from error
        connection.sock.settimeout(REPLY_TIMEOUT_S)
        return connection


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the service has closed a connection on which nothing is awaited, as it does after a while."""
    if connection.sock is None:
        return True
    idle = select.poll()
    idle.register(connection.sock, select.POLLIN)
    return bool(idle.poll(0))


def _broke_off(response: http.client.HTTPResponse, content: bytes) -> bool:
    """Whether a reply is incomplete, of which http.client says nothing when it is read by amount."""
    if response.length is None:  # in chunks; or no length was named: by another program, or cut off as well
        return not (response.chunked or content)
    return response.length > 0


def describe_refusal(endpoint: Endpoint, error: OSError) -> ServiceUnreachableError:
    """Why a connection could not be made, and what to do."""
    is_absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
    if is_absent:
        reason = "no service runs there"
        remedy = "duovisor service start" if endpoint.socket else "start duovisord there"
    elif isinstance(error, PermissionError):
        reason, remedy = "you may not use it", "ask to be a member of the group duovisor"
    elif "too long" in str(error):
        reason, remedy = str(error), "set a shorter DUOVISOR_RUNTIME_DIR"
    else:
        reason, remedy = error.strerror or str(error) or "no answer", ""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = getattr(error, "verify_message", "") or "its certificate is not trusted"
            remedy = "give its certificate with --certificate FILE"
    return ServiceUnreachableError(f"cannot reach {endpoint}: {reason}", remedy=remedy, is_absent=is_absent)


def build_api_error(status: int, body: bytes) -> ApiError | ReplyError:
    """The error that a reply describes."""
    try:
        document = json.loads(body)
        return ApiError(
            str(document["code"]),
            str(document["message"]),
            remedy=str(document.get("remedy", "")),
            status=status,
            field=document.get("field"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        text = " ".join(body.decode(errors="replace").split())[:100]
        return ReplyError(f"the service answered {status}: {text}", remedy="is this a duovisord?")
