"""Bearer tokens: 256 random bits that stand for a name and a role until they expire.

Only the SHA-256 of a token is stored. A slow, salted hash (argon2, bcrypt) protects secrets that can be
guessed; 2²⁵⁶ random values cannot, salted or not, and a slow hash would let anybody who can reach the HTTPS
port burn the service's processors with wrong tokens.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from duovisor.controlling.service.errors import TokenExistsError, TokenNotFoundError
from duovisor.controlling.service.identity import Identity, Role
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.errors import DocumentExistsError, DocumentNotFoundError
from duovisor.spec.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.store.interface import Store

PREFIX = "duovisor_"  # so that scanners for leaked secrets can know one when they see it
SECRET_BYTES = 32

TokenName = Annotated[str, AfterValidator(check_name), Field(min_length=1, max_length=63)]


class TokenDocument(BaseModel):
    """A token as it is stored; who holds the store still cannot use it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: TokenName
    role: Role
    sha256: str
    created_at: datetime
    created_by: str
    expires_at: datetime


class NewToken(NamedTuple):
    """A token at the one moment when its secret is known."""

    secret: str
    document: TokenDocument


TOKEN = DocumentKind("token", TokenDocument)


def hash_token(secret: str) -> str:
    """What is stored of a token, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def utc_now() -> datetime:
    """The time of day, in UTC."""
    return datetime.now(UTC)


class Tokens:
    """The tokens of this host: kept in the store, looked up in memory."""

    def __init__(self, store: Store, now: Callable[[], datetime] = utc_now) -> None:
        self._collection = Collection(store, TOKEN, "/tokens/")
        self._now = now
        self._by_hash: dict[str, TokenDocument] = {}

    async def open(self) -> None:
        """Read the stored tokens."""
        after: str | None = None
        while True:
            page = await self._collection.list(limit=1000, after=after)
            self._by_hash |= {item.document.sha256: item.document for item in page.items}
            if not page.more:
                return
            after = page.items[-1].id

    def list(self) -> list[TokenDocument]:
        """Every token by name, expired ones too."""
        return sorted(self._by_hash.values(), key=lambda token: token.name)

    def is_expired(self, token: TokenDocument) -> bool:
        """Whether the token has had its time."""
        return token.expires_at <= self._now()

    def find_identity(self, secret: str) -> Identity | None:
        """Whom a token stands for; ``None`` for one that is unknown or has expired."""
        # A lookup by hash takes no longer for a token that begins rightly: there is nothing to time.
        token = self._by_hash.get(hash_token(secret))
        if token is None or self.is_expired(token):
            return None
        return Identity(f"token:{token.name}", token.role, token.sha256)

    def is_valid(self, sha256: str) -> bool:
        """Whether the token with this hash is there and has not expired."""
        token = self._by_hash.get(sha256)
        return token is not None and not self.is_expired(token)

    async def create(self, name: str, role: Role, lifetime: timedelta, *, created_by: str) -> NewToken:
        """Make a token. Raises ``TokenExistsError``."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        now = self._now().replace(microsecond=0)
        document = TokenDocument(
            name=name,
            role=role,
            sha256=hash_token(secret),
            created_at=now,
            created_by=created_by,
            expires_at=now + lifetime,
        )
        try:
            await self._collection.create(name, document)
        except DocumentExistsError as error:
            raise TokenExistsError(
                f"there is a token {name!r} already", remedy="choose another name, or delete that one"
            ) from error
        self._by_hash[document.sha256] = document
        return NewToken(secret, document)

    async def delete(self, name: str) -> None:
        """Revoke a token, at once. Raises ``TokenNotFoundError``."""
        try:
            stored = await self._collection.get(name)
            await self._collection.delete(
                name, seen_revision=stored.mod_revision
            )  # never changed, only deleted
        except DocumentNotFoundError as error:
            raise TokenNotFoundError(f"there is no token {name!r}", remedy="duovisor token list") from error
        self._by_hash.pop(stored.document.sha256, None)
