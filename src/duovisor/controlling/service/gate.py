"""The gate before every route: who asks, how large a body may be, and how long the answer took.

It is ASGI middleware, so that nothing of a stranger's body is read. Whom it lets through carries an
``Identity``; whether its role is enough is decided where each route says what it needs (``require``).
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from duovisor.controlling.service.context import get_service
from duovisor.controlling.service.errors import NotAllowedError, NotAuthenticatedError
from duovisor.controlling.service.identity import Identity, Role, identify_peer
from duovisor.controlling.service.metrics import RequestKey
from duovisor.controlling.service.peer import STATE_KEY, Peer
from duovisor.controlling.service.replies import build_error_reply

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from duovisor.controlling.service.tokens import Tokens

PUBLIC = frozenset({"/v1/health", "/openapi.json"})
MAX_BODY_BYTES = 1 << 20
UPLOAD_PATH = re.compile(r"/v1/(volumes/[^/]+|images)/[^/]+/content")
SCREEN_PATH = re.compile(r"/v1/vms/([^/]+)/vnc")
IDENTITY_KEY, TICKET_KEY = "identity", "ticket"


class Gatekeeper:
    """Knows who may come in. A token, when one is shown, decides alone; else the peer of a Unix socket."""

    def __init__(self, tokens: Tokens, *, service_uid: int, admin_gid: int | None) -> None:
        self._tokens = tokens
        self._service_uid = service_uid
        self._admin_gid = admin_gid

    def identify(self, authorization: str | None, peer: Peer | None) -> Identity:
        """Who asks. Raises ``NotAuthenticatedError``."""
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            identity = self._tokens.find_identity(secret.strip()) if scheme.lower() == "bearer" else None
            if identity is None:
                raise NotAuthenticatedError(
                    "the token is unknown or has expired",
                    remedy="ask an administrator: duovisor token create",
                )
            return identity
        if peer is None:
            raise NotAuthenticatedError("a token is needed here", remedy="send Authorization: Bearer TOKEN")
        return identify_peer(peer, service_uid=self._service_uid, admin_gid=self._admin_gid)

    def is_valid(self, identity: Identity) -> bool:
        """Whether who was let in would still be; asked while a stream lasts."""
        return identity.token_sha256 is None or self._tokens.is_valid(identity.token_sha256)


class Gate:
    """The middleware; without a service (when only the document is wanted) it lets nobody in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._pass(scope, receive, send_counted)
        except Exception:
            status = status or HTTPStatus.INTERNAL_SERVER_ERROR  # the reply is made outside of this
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            key = RequestKey(scope.get("method", "WEBSOCKET"), route, status)
            get_service(HTTPConnection(scope)).requests.observe(key, time.monotonic() - begun)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        state = scope.setdefault("state", {})
        screen = SCREEN_PATH.fullmatch(scope["path"]) if scope["type"] == "websocket" else None
        if scope["path"] not in PUBLIC:
            try:
                if screen is not None and "ticket" in connection.query_params:
                    secret = connection.query_params["ticket"]
                    ticket = get_service(connection).tickets.redeem(secret, screen[1])
                    state[TICKET_KEY], state[IDENTITY_KEY] = ticket, ticket.who
                    await self._app(scope, receive, send)
                    return
                state[IDENTITY_KEY] = get_service(connection).gatekeeper.identify(
                    connection.headers.get("authorization"), state.get(STATE_KEY)
                )
            except NotAuthenticatedError as error:
                await build_error_reply(error)(scope, receive, send)
                return
        body = receive if is_upload(scope) else limit_body(receive)
        await self._app(scope, body, send)


def is_upload(scope: Scope) -> bool:
    """Whether a request's body is an image, which its route holds against the pool's free space."""
    return scope.get("method") == "PUT" and UPLOAD_PATH.fullmatch(scope["path"]) is not None


def limit_body(receive: Receive) -> Receive:
    """A ``receive`` that refuses more than ``MAX_BODY_BYTES``, whatever the headers promised."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
        return message

    return receive_limited


class Require(SecurityBase):
    """A dependency: the identity of who asks, if its role is enough. Raises ``NotAllowedError``."""

    def __init__(self, role: Role) -> None:
        self.role = role
        # for the OpenAPI document; the gate has looked at the header already
        self.model = HTTPBearerModel(description="over HTTPS; over the Unix socket the peer's user decides")
        self.scheme_name = "token"

    def __call__(self, connection: HTTPConnection) -> Identity:
        identity = getattr(connection.state, IDENTITY_KEY)
        assert isinstance(identity, Identity)
        if identity.role is None:
            raise NotAllowedError(
                f"{identity.name} may not use this service", remedy="join the group duovisor, or use a token"
            )
        if not identity.role.includes(self.role):
            raise NotAllowedError(  # never about a viewer, which every role includes
                f"{identity.name} is {identity.role}; this takes an {self.role}",
                remedy="ask an administrator",
            )
        return identity


Viewer = Annotated[Identity, Depends(Require(Role.VIEWER))]
Operator = Annotated[Identity, Depends(Require(Role.OPERATOR))]
Administrator = Annotated[Identity, Depends(Require(Role.ADMINISTRATOR))]
