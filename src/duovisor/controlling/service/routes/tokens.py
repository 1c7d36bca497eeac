"""Tokens: who may come in over HTTPS. For administrators only."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Administrator
from duovisor.controlling.service.identity import Role
from duovisor.controlling.service.replies import After, ApiModel, Limit, Listing, Name
from duovisor.controlling.service.tokens import TokenDocument, TokenName

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

DEFAULT_DAYS = 90


class TokenRequest(ApiModel):
    """A token to be made."""

    name: TokenName
    role: Role
    expires_in_days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] = DEFAULT_DAYS


class TokenView(ApiModel):
    """A token without its secret."""

    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime
    expired: bool


class CreatedToken(TokenView):
    """A token with its secret, which is shown this once and kept nowhere."""

    token: str


@router.get("", summary="List tokens by name")
async def list_tokens(
    service: ServiceDep, _: Administrator, limit: Limit = 100, after: After = None
) -> Listing[TokenView]:
    rest = [token for token in service.tokens.list() if after is None or token.name > after]
    items = tuple(TokenView(**_describe(service, token)) for token in rest[:limit])
    return Listing(items=items, after=items[-1].name if len(rest) > limit else None)


@router.post("", status_code=201, summary="Make a token; its secret is shown only in this reply")
async def create_token(service: ServiceDep, who: Administrator, wanted: TokenRequest) -> CreatedToken:
    made = await service.tokens.create(
        wanted.name, wanted.role, timedelta(days=wanted.expires_in_days), created_by=who.name
    )
    message = f"{wanted.role}, until {made.document.expires_at:%Y-%m-%d %H:%M} UTC"
    event = service.events.emit(who.name, "token.create", f"token/{wanted.name}", message=message)
    await service.events.wait_written(event)
    return CreatedToken(token=made.secret, **_describe(service, made.document))


@router.delete("/{name}", status_code=204, summary="Revoke a token, at once")
async def delete_token(service: ServiceDep, who: Administrator, name: Name) -> None:
    await service.tokens.delete(name)
    await service.events.wait_written(service.events.emit(who.name, "token.delete", f"token/{name}"))


def _describe(service: Service, token: TokenDocument) -> dict[str, Any]:
    return {**token.model_dump(exclude={"sha256"}), "expired": service.tokens.is_expired(token)}
