"""Documents: what the service stores, as JSON that says its kind and version.

A document is ``{"kind": "vm", "version": 2, …}``. Its kind knows how to bring each older version one step
forward, so whatever was ever stored can be read; what a newer duovisor stored is refused, never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from duovisor.controlling.store.errors import DocumentError, DocumentTooNewError

Upgrader = Callable[[dict[str, Any]], dict[str, Any]]
M = TypeVar("M", bound=BaseModel)

_RESERVED = frozenset({"kind", "version"})


@dataclass(frozen=True)
class DocumentKind(Generic[M]):
    """A kind of document: ``model`` is its newest version, ``upgraders[n]`` turns version n into n + 1.

    Raises ``ValueError`` when a step is missing, or the model has a field called ``kind`` or ``version``.
    """

    name: str
    model: type[M]
    version: int = 1
    upgraders: Mapping[int, Upgrader] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.upgraders) != set(range(1, self.version)):
            steps = ", ".join(map(str, sorted(self.upgraders))) or "none"
            raise ValueError(
                f"{self.name} version {self.version} needs a step from each before; it has {steps}"
            )
        if taken := _RESERVED & set(self.model.model_fields):
            raise ValueError(f"a field of {self.name} cannot be called {' or '.join(sorted(taken))}")

    def encode(self, document: M) -> bytes:
        """The document as it is stored."""
        body = {"kind": self.name, "version": self.version, **document.model_dump(mode="json")}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, value: bytes, *, key: str) -> M:
        """The document in a stored value, brought to the newest version.

        Raises ``DocumentTooNewError``, or ``DocumentError`` when the value is not one of this kind; ``key``
        is named in the error.
        """
        body = _parse(value, key)
        version = self._check_head(body, key)
        body = {name: item for name, item in body.items() if name not in _RESERVED}
        for step in range(version, self.version):
            body = self.upgraders[step](body)
        try:
            return self.model.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise DocumentError(f"{key} is not a valid {self.name}: {where}: {first['msg']}") from error

    def _check_head(self, body: dict[str, Any], key: str) -> int:
        """The document's version."""
        kind, version = body.get("kind"), body.get("version")
        if kind != self.name:
            raise DocumentError(f"{key} holds a document of kind {kind!r}, not {self.name!r}")
        if type(version) is not int or version < 1:
            raise DocumentError(f"{key} has the version {version!r}, which is not a version")
        if version > self.version:
            raise DocumentTooNewError(
                f"{key} is a {self.name} of version {version}; this duovisor knows up to {self.version}",
                remedy="run the newer duovisor that wrote it",
            )
        return version


def _parse(value: bytes, key: str) -> dict[str, Any]:
    try:
        body = json.loads(value)
    except ValueError as error:
        raise DocumentError(f"{key} does not hold JSON: {error}") from error
    if not isinstance(body, dict):
        raise DocumentError(f"{key} holds JSON that is not an object")
    return body
