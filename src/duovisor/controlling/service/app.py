"""Puts the API together: routes, the gate before them, and one shape for every error."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from duovisor import __version__
from duovisor.controlling.service.errors import (
    InternalError,
    MethodNotAllowedError,
    NoSuchPathError,
    RequestInvalidError,
    RequestTooLargeError,
    ServiceError,
)
from duovisor.controlling.service.gate import Gate
from duovisor.controlling.service.replies import ERRORS, build_error_reply
from duovisor.controlling.service.routes import (
    cdroms,
    console,
    drivers,
    events,
    firmware,
    guests,
    host,
    images,
    networks,
    operations,
    pools,
    screen,
    snapshots,
    tokens,
    vm_devices,
    vm_resources,
    vms,
    volumes,
)
from duovisor.controlling.service.routes import (
    service as service_routes,
)
from duovisor.errors import DuovisorError
from duovisor.spec.loading import shorten

if TYPE_CHECKING:
    from fastapi.responses import Response
    from fastapi.routing import APIRoute
    from starlette.requests import Request

    from duovisor.controlling.service.context import Service

DESCRIPTION = (
    "Virtual machines of one host in both hypervisor designs. "
    "What may take a second answers 202 with an operation; changes need If-Match."
)
ROUTERS = (
    vms,
    vm_devices,
    vm_resources,
    firmware,
    guests,
    cdroms,
    snapshots,
    console,
    screen,
    pools,
    volumes,
    networks,
    images,
    host,
    operations,
    events,
    tokens,
    drivers,
    service_routes,
)

_log = logging.getLogger(__name__)


def build_app(service: Service | None = None) -> FastAPI:
    """The application; without a service it can only describe itself."""
    app = FastAPI(
        title="duovisor",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
        generate_unique_id_function=_operation_id,
    )
    app.state.service = service
    for module in ROUTERS:
        app.include_router(module.router)
    app.add_exception_handler(DuovisorError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
    app.add_middleware(Gate)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DuovisorError)
    return build_error_reply(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return build_error_reply(describe_invalid(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reply = build_error_reply(_translate(request, error))
    reply.headers.update(error.headers or {})
    return reply


async def _on_fault(request: Request, error: Exception) -> Response:
    _log.error("%s %s met a fault", request.method, request.scope["path"], exc_info=error)
    return build_error_reply(InternalError("a fault of duovisor itself", remedy="see the service's log"))


def _translate(request: Request, error: HTTPException) -> ServiceError:
    """Our error for one that the framework raised."""
    path = shorten(request.scope["path"])
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return NoSuchPathError(f"there is nothing at {path}", remedy="see /openapi.json")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowedError(f"{path} does not take {request.method}", remedy="see /openapi.json")
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return RequestTooLargeError(str(error.detail))
        case _:
            return RequestInvalidError(str(error.detail))


def describe_invalid(error: RequestValidationError) -> RequestInvalidError:
    """The first fault of a request, in one line; ``field`` leads to it, as in ``spec.disks.0.path``."""
    fault = error.errors()[0]
    where, *path = [str(part) for part in fault["loc"]] or ["request"]
    field = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return RequestInvalidError(f"unknown field {shorten(repr(field))}", field=shorten(field))
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        return RequestInvalidError(f"the body is not JSON: {reason}", field="body")
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = shorten(message[:1].lower() + message[1:], 200)
    given = fault.get("input")
    shows_value = isinstance(given, str | int | float) and repr(given) not in message
    value = f" (got {shorten(repr(given))})" if shows_value else ""
    return RequestInvalidError(f"{field or where}: {message}{value}", field=shorten(field or where))
