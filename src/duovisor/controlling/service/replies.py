"""The shapes that several nouns of the API share: errors, pages, names, preconditions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from fastapi import Header, Path, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from duovisor.controlling.service.errors import PreconditionRequiredError, RequestInvalidError
from duovisor.error_table import meaning_of
from duovisor.spec.names import NAME_MAX

if TYPE_CHECKING:
    from duovisor.errors import DuovisorError

T = TypeVar("T")

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"

Name = Annotated[str, Path(min_length=1, max_length=NAME_MAX, pattern=NAME_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
After = Annotated[
    str | None,
    Query(max_length=100, pattern=r"^[A-Za-z0-9_.-]+$", description="the `after` of the page before"),
]
IfMatch = Annotated[
    str | None,
    Header(max_length=100, description='the ETag of what is to be changed, as it was seen; "*": any'),
]

_ETAG = re.compile(r'"(\d{1,18})"', re.ASCII)


class ApiModel(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorReply(ApiModel):
    """Every error: a stable code, what was wrong with which value, and what to do about it."""

    code: str
    message: str
    remedy: str = ""
    field: str | None = Field(default=None, description="which part of the request was wrong")


class Listing(ApiModel, Generic[T]):
    """Part of a list; `after` asks for the next part and is null at the end."""

    items: tuple[T, ...]
    after: str | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "refused; nothing was changed"},
    "5XX": {"model": ErrorReply, "description": "it failed; the service's log says more"},
    422: {"model": ErrorReply, "description": "the request cannot be meant"},
}
"""For every route: takes the place of the framework's own description of errors."""


def build_error_reply(error: DuovisorError) -> JSONResponse:
    """The reply for an error, with the status that the error table says."""
    reply = ErrorReply(
        code=error.code, message=error.message, remedy=error.remedy, field=getattr(error, "field", None)
    )
    status = meaning_of(error.code).http_status
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(reply.model_dump(exclude_none=True), status, headers)


def build_etag(revision: int) -> str:
    """The entity tag of a revision."""
    return f'"{revision}"'


def parse_if_match(value: str | None, current_revision: int) -> int:
    """The revision that a change was made from; ``*`` stands for the current one.

    Raises ``PreconditionRequiredError`` without the header and ``RequestInvalidError`` for anything that is
    not one strong entity tag of ours (RFC 9110, 13.1.1: weak ones never match).
    """
    if value is None:
        raise PreconditionRequiredError(
            "a change must say which revision it was made from",
            remedy="send the ETag of the last GET as If-Match",
        )
    if value == "*":
        return current_revision
    match = _ETAG.fullmatch(value)
    if match is None:
        raise RequestInvalidError(
            f"If-Match: {value!r} is not an ETag of this service",
            remedy='send what the last GET said, for example "17"',
            field="If-Match",
        )
    return int(match[1])
